//! Newtypes for everything that would otherwise be a bare number or UUID.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! uuid_newtype {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }

        impl From<Uuid> for $name {
            fn from(id: Uuid) -> Self {
                Self(id)
            }
        }
    };
}

uuid_newtype! {
    /// One stream of events: the history of one agent, node, job, instance or refused callback,
    /// of the queue, or of the ledger.
    StreamId
}
uuid_newtype! {
    /// An agent: what a customer calls their server. Its stream has the same UUID.
    AgentId
}
uuid_newtype! {
    /// A node: a machine that hosts sites. Its stream has the same UUID.
    NodeId
}
uuid_newtype! {
    /// A job: one order to change something outside, in up to four attempts.
    JobId
}
uuid_newtype! {
    /// An instance: the server one provisioning job is to build for an agent.
    InstanceId
}

impl StreamId {
    /// The stream of the queue itself: when it was stopped and let go on.
    pub const QUEUE: Self = Self(Uuid::from_u128(0x0000_0000_0000_8000_8000_0071_7565_7565));

    /// The stream of what proves the log: its keys and epochs.
    pub const LEDGER: Self = Self(Uuid::from_u128(0x0000_0000_0000_8000_8000_6c65_6467_6572));
}

macro_rules! has_stream {
    ($($name:ident),*) => {
        $(impl $name {
            /// The stream that holds this thing's events.
            pub fn stream(self) -> StreamId {
                StreamId(self.0)
            }
        }
        impl From<StreamId> for $name {
            fn from(stream: StreamId) -> Self {
                Self(stream.0)
            }
        })*
    };
}
has_stream!(AgentId, JobId, InstanceId, NodeId);

impl JobId {
    /// The stream that holds what the job's runs print: apart, so that the job itself stays quick
    /// to read however much that is.
    pub fn log_stream(self) -> StreamId {
        StreamId(Uuid::new_v5(&self.0, b"log"))
    }
}

/// A place in the whole log, from 1, without gaps, in commit order. 0 stands before the first.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Position(pub u64);

impl Position {
    /// Before the first event.
    pub const START: Self = Self(0);

    /// The position after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number of an attempt of a job, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Attempt(pub u32);

impl Attempt {
    /// The first attempt of every job.
    pub const FIRST: Self = Self(1);

    /// The attempt after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
