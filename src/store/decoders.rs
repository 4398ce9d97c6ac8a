//! The decoders of what the database sends in a binary format of its own.

use tokio_postgres::types::{FromSql, Type};

use super::decode::Net;
use crate::decoder::{Decoder, Outcome};

pub const DECODERS: [Decoder; 1] =
    [Decoder::new("inet", |bytes| Outcome::from(Net::from_sql(&Type::INET, bytes)))];
