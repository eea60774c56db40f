//! What the engine knows, in the shape in which Docker shows it: objects of `inspect`, rows of listings.

pub(crate) mod container;
pub(crate) mod event;
pub(crate) mod image;
pub(crate) mod network;
pub(crate) mod row;
pub(crate) mod usage;
