//! What was measured of servers, over all pairs.

use serde::Serialize;

use crate::contestant::Contestant;

/// A figure of a server over all pairs.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    pub(crate) server: Contestant,
    pub(crate) figure: &'static str,
    /// The figure itself: median, least, most.
    pub(crate) value: [f64; 3],
    /// Its ratio to the floor's in the same pair: median, least, most.
    pub(crate) ratio: Option<[f64; 3]>,
}

/// A table, measured.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Measured {
    pub(crate) name: &'static str,
    pub(crate) rows: Vec<Row>,
}
