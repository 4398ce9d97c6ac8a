//! Changes of what the kernel is to hold.

use crate::model::Touched;
use crate::reconcile::note::Note;

/// A change by rows, by time, by an operator or by another database.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// What to say about it.
    pub notes: Vec<Note>,
    pub touched: Touched,
    pub compared: Compared,
}

/// How much is to be compared because of a change.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Compared {
    /// What it touched.
    #[default]
    Touched,
    /// Everything: it is a decision about all peers.
    Everything,
    /// Everything, and routes that were given up are tried again: all rows were replaced.
    Anew,
}

impl Change {
    /// Everything is compared because of a decision, and not of a change in the kernel.
    pub fn of_everything(note: Option<Note>, touched: Option<Touched>) -> Self {
        let compared = Compared::Everything;
        Self { notes: note.into_iter().collect(), touched: touched.unwrap_or_default(), compared }
    }

    pub fn noted(note: Option<Note>, touched: Option<Touched>) -> Self {
        Self { compared: Compared::Touched, ..Self::of_everything(note, touched) }
    }
}

impl From<Touched> for Change {
    fn from(touched: Touched) -> Self {
        Self { touched, ..Self::default() }
    }
}

impl From<Option<Touched>> for Change {
    fn from(touched: Option<Touched>) -> Self {
        touched.unwrap_or_default().into()
    }
}
