//! Settings as operators write them.

mod access;
mod as_written;
mod foreign;
mod history;
mod load;
mod namespace;
mod operator;
mod parse;
