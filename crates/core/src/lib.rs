//! What every other crate of the server may use. Knows no network and no async runtime.
//!
//! * [`settings`]: the table of all settings ([`settings::SPECS`]), the sources that values are read from, the
//!   checked result ([`settings::Settings`]), and every error in them with the place where it is.
//! * [`logging`]: the log, which never blocks: to stdout, and to daily files.
//! * [`phase`]: the life of the process, as data.
//! * [`process`]: the limit of open files, the kernel's descriptor table, and trimming of the heap.
//! * [`SpareDescriptor`]: one file descriptor in reserve, to answer clients when the process has no other.

pub mod logging;
pub mod phase;
pub mod process;
pub mod settings;
mod spare_descriptor;

pub use spare_descriptor::SpareDescriptor;
