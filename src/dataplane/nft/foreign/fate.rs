//! What becomes of our packets in a chain of another program that drops by default. Pure.

/// What a base chain does with the packets of one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// No rule and no policy drops what the others leave.
    Passes,
    /// The rest is dropped.
    Dropped {
        /// Packets of flows that were answered pass, whatever else they are.
        accepts_answers: bool,
        /// A rule that names our link or port accepts some packets.
        accepts_some: bool,
    },
}

/// Which of our packets a chain drops by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lost {
    /// All: no rule that names our link or port accepts any.
    All,
    /// All but what some rules accept, and answers are not among that.
    Most,
    /// What goes to peers, answers too.
    Answers,
    /// What its rules leave, perhaps on purpose. Answers pass.
    Some,
}

impl Lost {
    /// Of what is forwarded `from` peers and `to` them.
    #[must_use]
    pub const fn of_forwarded(from: Fate, to: Fate) -> Option<Self> {
        use Fate::{Dropped, Passes};
        let answered = matches!(to, Passes | Dropped { accepts_answers: true, .. });
        match (from, to) {
            (Passes, Passes) => None,
            (Passes, Dropped { .. }) if answered => Some(Self::Some),
            (Passes, Dropped { .. }) => Some(Self::Answers),
            (Dropped { accepts_some: false, .. }, Dropped { accepts_some: false, .. }) => {
                Some(Self::All)
            }
            (Dropped { accepts_answers: true, accepts_some: true }, _) if answered => {
                Some(Self::Some)
            }
            (Dropped { .. }, _) => Some(Self::Most),
        }
    }

    /// Of what peers send to this host itself.
    #[must_use]
    pub const fn of_peers(from: Fate) -> Option<Self> {
        match from {
            Fate::Passes => None,
            Fate::Dropped { accepts_some: true, .. } => Some(Self::Some),
            Fate::Dropped { accepts_some: false, .. } => Some(Self::All),
        }
    }

    /// Of WireGuard's own packets. A rule for the port may accept only some senders on purpose.
    #[must_use]
    pub const fn of_wireguard(fate: Fate) -> Option<Self> {
        match fate {
            Fate::Passes | Fate::Dropped { accepts_some: true, .. } => None,
            Fate::Dropped { accepts_some: false, .. } => Some(Self::All),
        }
    }

    /// Of what WireGuard sends. Answers are enough: peers call the gateway.
    #[must_use]
    pub const fn of_sent(fate: Fate) -> Option<Self> {
        match fate {
            Fate::Dropped { accepts_answers: false, accepts_some: false } => Some(Self::All),
            Fate::Passes | Fate::Dropped { .. } => None,
        }
    }

    /// Of what this host sends to peers. Answers are enough for its services.
    #[must_use]
    pub const fn of_host(to: Fate) -> Option<Self> {
        match to {
            Fate::Passes => None,
            Fate::Dropped { accepts_answers, accepts_some } if accepts_answers || accepts_some => {
                Some(Self::Some)
            }
            Fate::Dropped { .. } => Some(Self::All),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_that_drops_answers_is_never_called_fine() {
        let dropped =
            |accepts_answers, accepts_some| Fate::Dropped { accepts_answers, accepts_some };
        let fates = [
            Fate::Passes,
            dropped(false, false),
            dropped(false, true),
            dropped(true, false),
            dropped(true, true),
        ];
        let [passes, nothing, some, answers, both] = fates;
        for (from, to, lost) in [
            (passes, passes, None),
            (passes, nothing, Some(Lost::Answers)),
            (passes, answers, Some(Lost::Some)),
            (nothing, nothing, Some(Lost::All)),
            (answers, answers, Some(Lost::All)),
            (some, nothing, Some(Lost::Most)),
            (nothing, passes, Some(Lost::Most)),
            (answers, passes, Some(Lost::Most)),
            (some, answers, Some(Lost::Most)),
            (both, answers, Some(Lost::Some)),
        ] {
            assert_eq!(Lost::of_forwarded(from, to), lost, "{from:?} {to:?}");
        }
        for (from, to) in fates.iter().flat_map(|from| fates.map(|to| (*from, to))) {
            let is_fine = Lost::of_forwarded(from, to).is_none();
            assert_eq!(is_fine, from == passes && to == passes, "{from:?} {to:?}");
        }
    }
}
