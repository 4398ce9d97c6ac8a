//! Which steps go to the kernel together, and which must not reach it. Pure.

use super::DataplaneError;
use crate::model::PublicKey;
use crate::plan::Step;

/// How many peers or routes go to the kernel together: a job can be interrupted after each run.
const RUN_AT_MOST: usize = 1024;

/// How many of the next steps go to the kernel together: some peers of one phase, some routes of one
/// phase, or any other one alone.
pub(super) fn run_len(steps: &[Step], own_key: Option<PublicKey>) -> usize {
    let together = |a: &Step, b: &Step| {
        let alike = part(a) == part(b) && matches!(part(a), Part::Peer | Part::Route);
        let asked = |step| refuse_unasked(step, own_key).is_none();
        alike && a.phase() == b.phase() && asked(a) && asked(b)
    };
    let steps = &steps[..steps.len().min(RUN_AT_MOST)];
    steps.chunk_by(together).next().map_or(0, <[Step]>::len)
}

/// The first steps of a run that are permitted alike, and whether they are.
pub(super) fn head_of(run: &[Step], permits: impl Fn(&Step) -> bool) -> (&[Step], bool) {
    let mut verdicts = run.iter().map(permits);
    let Some(first) = verdicts.next() else { return (run, true) };
    let len = 1 + verdicts.take_while(|permitted| *permitted == first).count();
    (&run[..len], first)
}

/// WireGuard acknowledges a peer with the device's own key, and ignores it.
pub(super) fn refuse_unasked(step: &Step, own_key: Option<PublicKey>) -> Option<DataplaneError> {
    match step {
        Step::AddPeer { key, .. } if own_key == Some(*key) => Some(DataplaneError::OwnKey),
        _ => None,
    }
}

/// Which part of the host a step changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Firewall,
    Flows,
    /// Links, whatever their names, before the interface can be looked for.
    Links,
    /// The interface's own settings and addresses.
    Interface,
    Peer,
    Route,
    /// The gate, which belongs to no link.
    Rules,
}

/// The part of each step, without a default, so that a new step must be assigned one.
pub(super) const fn part(step: &Step) -> Part {
    match step {
        Step::Firewall { .. } => Part::Firewall,
        Step::CutFlows { .. } => Part::Flows,
        Step::RenameLink { .. }
        | Step::FreeLink { .. }
        | Step::TakeDown { .. }
        | Step::CreateLink { .. } => Part::Links,
        Step::ClaimLink { .. }
        | Step::SetMtu { .. }
        | Step::SetPrivateKey { .. }
        | Step::SetListenPort { .. }
        | Step::SetFwmark { .. }
        | Step::AddAddress { .. }
        | Step::ReplaceAddress { .. }
        | Step::RemoveAddress { .. }
        | Step::OpenSessions
        | Step::SetUp => Part::Interface,
        Step::RemovePeer { .. }
        | Step::NarrowPeer { .. }
        | Step::AddPeer { .. }
        | Step::WidenPeer { .. }
        | Step::SetPresharedKey { .. }
        | Step::SetKeepalive { .. } => Part::Peer,
        Step::AddRoute { .. } | Step::RemoveRoute { .. } => Part::Route,
        Step::AddRules { .. } | Step::RemoveRules { .. } => Part::Rules,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Peer;

    #[test]
    fn a_run_ends_with_its_kind_its_phase_and_before_the_own_key() {
        let key = |number| PublicKey::from_bytes([number; 32]).unwrap();
        let add = |number| Step::AddPeer { key: key(number), peer: Peer::default() };
        let remove = Step::RemovePeer { key: key(9) };
        let route = Step::AddRoute { prefix: "10.0.0.0/8".parse().unwrap() };
        let steps = [remove.clone(), remove, add(1), add(2), add(3), add(4), route];
        let lens = |own_key| {
            let mut rest = &steps[..];
            std::iter::from_fn(|| {
                let len = run_len(rest, own_key);
                rest = &rest[len..];
                (len > 0).then_some(len)
            })
            .collect::<Vec<_>>()
        };
        assert_eq!(run_len(&vec![add(1); RUN_AT_MOST + 1], None), RUN_AT_MOST);
        assert_eq!(lens(None), [2, 4, 1]);
        assert_eq!(lens(Some(key(3))), [2, 2, 1, 1, 1]);
    }
}
