//! Doubles of outside services: real HTTP servers on loopback that hold state, check every request
//! against facts of their own, record what they were asked, and go wrong when told to.

pub mod github;
