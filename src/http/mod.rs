//! What browsers and programs reach over HTTP.

pub mod pages;
