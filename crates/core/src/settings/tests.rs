//! Settings as operators write them.

mod as_written;
mod foreign;
mod load;
mod operator;
mod value;
