use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::time::{Duration, SystemTime};

use super::writer::{Kept, Writer};
use super::*;
use crate::model::{ChangedRows, DeviceId, KeyText, PeerRow, PolicyRow, PublicKey};
use crate::test_rows::{self, no_changes, peer_row};

pub(super) fn private_key(number: u8) -> PrivateKey {
    PrivateKey::from_random([number; 32])
}

pub(super) fn snapshot() -> SnapshotRows {
    test_rows::snapshot((1..=3).map(peer_row).collect())
}

pub(super) fn changed() -> ChangedRows {
    no_changes(SystemTime::UNIX_EPOCH)
}

/// The device of this number has these peers now.
fn change(number: u8, peers: Vec<PeerRow>) -> ChangedRows {
    ChangedRows { peers: [(peer_row(number).device_id, peers)].into(), ..changed() }
}

fn cache(folder: &Path) -> Cache {
    Cache::new(folder.join("last-good"), &private_key(1))
}

/// The addresses of the peers that a host would start with.
fn restored(cache: &Cache) -> Vec<String> {
    let Some(LastGood { rows, changes, .. }) = cache.load("fra-1").unwrap() else { return vec![] };
    let mut peers: BTreeMap<DeviceId, Vec<PeerRow>> = BTreeMap::new();
    for row in rows.peers {
        peers.entry(row.device_id).or_default().push(row);
    }
    changes.into_iter().for_each(|change| peers.extend(change.peers));
    peers.into_values().flatten().map(|row| row.assigned_ip.addr().to_string()).collect()
}

#[test]
fn what_was_kept_comes_back_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::new(folder.path().join("deep/last-good"), &private_key(1));
    let mut writer = Writer::new(cache.clone());
    let provenance = Provenance::Sealed;
    assert!(cache.load("fra-1").unwrap().is_none());
    assert_eq!(writer.replace(&snapshot()).unwrap(), Kept::All);
    assert_eq!(writer.append(&changed()).unwrap(), Kept::All);
    writer.append(&change(1, vec![])).unwrap();
    let changes = vec![changed(), change(1, vec![])];
    let kept = LastGood { rows: snapshot(), changes, provenance };
    assert_eq!(cache.load("fra-1").unwrap(), Some(kept));
    writer.replace(&snapshot()).unwrap();
    let kept = LastGood { rows: snapshot(), changes: Vec::new(), provenance };
    assert_eq!(cache.load("fra-1").unwrap(), Some(kept));
}

#[test]
fn changes_that_outgrow_the_snapshot_are_written_once_each() {
    const CHANGES: u32 = 200;
    let folder = tempfile::tempdir().unwrap();
    let cache = cache(folder.path());
    let mut writer = Writer::new(cache.clone());
    writer.replace(&snapshot()).unwrap();
    let length = || fs::metadata(folder.path().join("last-good")).unwrap().len();
    let (mut longest, mut before) = (0, length());
    let mut shrank = 0;
    for number in 0..CHANGES {
        let mut row = peer_row(1);
        row.device_name = format!("{}-{number}", "laptop".repeat(4_000)).into();
        writer.append(&change(1, vec![row])).unwrap();
        longest = length().max(longest);
        shrank += u32::from(length() < before);
        before = length();
    }
    assert!(shrank > 0 && longest < 1_200_000, "{shrank} times shorter, up to {longest} bytes");
    assert_eq!(writer.append(&change(2, vec![])).unwrap(), Kept::All);
    let kept = cache.load("fra-1").unwrap().unwrap();
    assert_eq!((kept.rows, restored(&cache).len()), (snapshot(), 2));
    let last =
        kept.changes.iter().filter_map(|it| it.peers.get(&peer_row(1).device_id)).next_back();
    assert!(last.unwrap()[0].device_name.ends_with(&format!("-{}", CHANGES - 1)));
}

#[test]
fn change_to_rows_of_another_run_removes_them() {
    let folder = tempfile::tempdir().unwrap();
    let cache = cache(folder.path());
    Writer::new(cache.clone()).replace(&snapshot()).unwrap();
    assert_eq!(Writer::new(cache.clone()).append(&changed()).unwrap(), Kept::Nothing);
    assert!(cache.load("fra-1").unwrap().is_none());
}

#[test]
fn rows_of_another_gateway_are_not_used() {
    let folder = tempfile::tempdir().unwrap();
    let cache = cache(folder.path());
    Writer::new(cache.clone()).replace(&snapshot()).unwrap();
    let refused = cache.load("ams-1").unwrap_err();
    assert!(matches!(refused, CacheError::OtherGateway { .. }), "{refused}");
}

#[test]
fn altered_moved_or_missing_line_makes_the_file_useless() {
    let folder = tempfile::tempdir().unwrap();
    let cache = cache(folder.path());
    let mut writer = Writer::new(cache.clone());
    writer.replace(&snapshot()).unwrap();
    writer.append(&change(1, vec![])).unwrap();
    writer.append(&change(2, vec![])).unwrap();
    let path = folder.path().join("last-good");
    let good = fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = good.lines().collect();
    let text = |lines: &[&str]| lines.iter().map(|line| format!("{line}\n")).collect::<String>();
    let [heading, first, second, third] = lines[..] else { panic!("{lines:?}") };
    let wrong = [
        good.replace("10.64.0.1/32", "0.0.0.0/0"),
        good.replace("10.64.0.2/32", "10.64.0.9/32"),
        text(&[heading, first, third, second]),
        text(&[heading, first, third]),
        text(&[heading, second, third]),
        text(&[heading, first, second, second, third]),
        text(&[first, second, third]),
        good[..good.len() - 40].to_owned(),
        format!("{good}{{\"changed\":"),
        good.replace(heading, "gatepost-last-good 3"),
    ];
    for altered in wrong {
        fs::write(&path, &altered).unwrap();
        let error = cache.load("fra-1").unwrap_err();
        assert!(error.to_string().contains("last-good"), "{error}");
    }
    fs::write(&path, &good).unwrap();
    assert_eq!(restored(&cache), ["10.64.0.3"]);
    let other_key = Cache::new(path, &private_key(2));
    assert!(matches!(other_key.load("fra-1"), Err(CacheError::Altered { line: 2, .. })));
}

#[test]
fn file_of_a_newer_version_is_named_and_not_used_however_well_it_is_sealed() {
    let folder = tempfile::tempdir().unwrap();
    let cache = cache(folder.path());
    let path = folder.path().join("last-good");
    Writer::new(cache.clone()).replace(&snapshot()).unwrap();
    let good = fs::read_to_string(&path).unwrap();
    // A line of a kind that this version does not know, with the checksum that the gateway's key makes.
    let (_, mut chain) = cache.load_with_chain().unwrap().unwrap();
    let mut line = good.clone().into_bytes();
    let mut sealed = seal::Sealed::new(&mut line, &mut chain);
    sealed.write_all(br#"{"suspended":{"peers":[]}}"#).unwrap();
    sealed.end().unwrap();
    fs::write(&path, &line).unwrap();
    let error = cache.load("fra-1").unwrap_err();
    assert!(matches!(error, CacheError::Damaged { line: 3, .. }), "{error}");
    assert!(error.to_string().contains("unknown variant `suspended`"), "{error}");
    for (heading, is_form) in [("gatepost-last-good 3", true), ("gatepost-last-good x", false)] {
        fs::write(&path, good.replacen(seal::HEADING, heading, 1)).unwrap();
        let error = cache.load("fra-1").unwrap_err();
        assert_eq!(matches!(error, CacheError::OtherForm { .. }), is_form, "{error}");
        assert_eq!(error.to_string().contains(heading), is_form, "{error}");
    }
    // The next full read replaces it.
    Writer::new(cache.clone()).replace(&snapshot()).unwrap();
    assert_eq!(restored(&cache).len(), 3);
}

#[test]
fn file_of_an_earlier_version_is_read_and_marked() {
    let folder = tempfile::tempdir().unwrap();
    let cache = cache(folder.path());
    let line = |line: &Line<SnapshotRows, ChangedRows>| serde_json::to_string(line).unwrap();
    let text =
        format!("{}\n{}\n", line(&Line::Snapshot(snapshot())), line(&Line::Changed(changed())));
    fs::write(folder.path().join("last-good"), &text).unwrap();
    let kept = cache.load("fra-1").unwrap().unwrap();
    assert_eq!((kept.provenance, kept.changes.len()), (Provenance::Unsealed, 1));
    Writer::new(cache.clone()).replace(&snapshot()).unwrap();
    assert_eq!(cache.load("fra-1").unwrap().unwrap().provenance, Provenance::Sealed);
    let torn = &text[..text.len() - 5];
    fs::write(folder.path().join("last-good"), torn).unwrap();
    assert!(matches!(cache.load("fra-1"), Err(CacheError::Damaged { line: 2, .. })));
}

/// A file system of so many bytes, for as long as it lives.
pub struct Disk(tempfile::TempDir);

impl Disk {
    pub fn of(bytes: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = format!("size={bytes},mode=700");
        let flags = nix::mount::MsFlags::empty();
        let (kind, none) = (Some("tmpfs"), None::<&str>);
        nix::mount::mount(none, folder.path(), kind, flags, Some(options.as_str()))
            .expect("this test mounts a file system, which needs root");
        Self(folder)
    }

    /// Takes the room that is left, but for what is reserved.
    pub fn fill(&self) {
        let file = File::create(self.0.path().join("ballast")).unwrap();
        let mut at = 0;
        while file.write_all_at(&[1; 4_096], at).is_ok() {
            at += 4_096;
        }
    }

    pub fn make_room(&self) {
        std::fs::remove_file(self.0.path().join("ballast")).unwrap();
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    fn read_only(&self) {
        let flags = nix::mount::MsFlags::MS_REMOUNT | nix::mount::MsFlags::MS_RDONLY;
        let none = None::<&str>;
        nix::mount::mount(none, self.0.path(), none, flags, none).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.0.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn full_disk_takes_withdrawals_and_no_grants() {
    let disk = Disk::of(512 * 1024);
    let cache = cache(disk.0.path());
    let mut writer = Writer::new(cache.clone());
    writer.replace(&snapshot()).unwrap();
    disk.fill();
    writer.append(&change(1, vec![])).unwrap();
    // The last block has room besides the reserve.
    let mut kept = (0..100).map(|_| writer.append(&change(4, vec![peer_row(4)])).unwrap());
    assert!(kept.any(|kept| kept == Kept::Withdrawals));
    assert_eq!(restored(&cache), ["10.64.0.2", "10.64.0.3"]);
    // A full read of the database finds that another device is gone.
    let mut rows = snapshot();
    rows.peers.remove(1);
    assert_eq!(writer.replace(&rows).unwrap(), Kept::Withdrawals);
    assert_eq!(restored(&cache), ["10.64.0.3"]);
    disk.make_room();
    assert_eq!(writer.append(&change(2, vec![])).unwrap(), Kept::Withdrawals, "a grant is lacking");
    assert_eq!(writer.replace(&rows).unwrap(), Kept::All);
    assert_eq!(restored(&cache), ["10.64.0.1", "10.64.0.3"]);
}

#[test]
fn file_is_removed_when_not_even_withdrawals_fit() {
    let disk = Disk::of(512 * 1024);
    let cache = cache(disk.0.path());
    let mut writer = Writer::new(cache.clone());
    writer.replace(&snapshot()).unwrap();
    disk.fill();
    let written = (0..2_000).map(|_| writer.append(&change(1, vec![])));
    let written = written.take_while(Result::is_ok).count();
    assert!((100..2_000).contains(&written), "{written} withdrawals");
    assert!(cache.load("fra-1").unwrap().is_none(), "old rows must not come back");
}

#[test]
fn settings_that_change_on_a_full_disk_remove_the_file() {
    let disk = Disk::of(512 * 1024);
    let cache = cache(disk.0.path());
    let mut writer = Writer::new(cache.clone());
    writer.replace(&snapshot()).unwrap();
    disk.fill();
    let mut rows = snapshot();
    rows.gateway.active = false;
    writer.replace(&rows).unwrap_err();
    assert!(cache.load("fra-1").unwrap().is_none());
}

#[test]
fn read_only_disk_with_old_rows_is_told_of() {
    let disk = Disk::of(512 * 1024);
    let cache = cache(disk.0.path());
    let mut writer = Writer::new(cache.clone());
    writer.replace(&snapshot()).unwrap();
    drop(writer);
    disk.read_only();
    let mut writer = Writer::new(cache);
    let error = writer.replace(&snapshot()).unwrap_err();
    assert!(matches!(error, CacheError::OutOfDate { .. }), "{error}");
    assert!(error.to_string().contains("remove it by hand"), "{error}");
    let error = writer.append(&change(1, vec![])).unwrap_err();
    assert!(matches!(error, CacheError::OutOfDate { .. }), "{error}");
}

#[test]
fn taken_time_of_withdrawals_is_the_snapshots() {
    let later = SystemTime::UNIX_EPOCH + Duration::from_secs(9);
    let old = LastGood { rows: snapshot(), changes: vec![], provenance: Provenance::Sealed };
    let new = SnapshotRows { taken_at: later, ..snapshot() };
    let withdrawn = withdrawn::between(old, &new).unwrap();
    assert_eq!(withdrawn, ChangedRows { taken_at: later, ..changed() });
}

/// The key of the peer of this number.
fn key(number: u8) -> PublicKey {
    match peer_row(number).public_key {
        KeyText::Key(key) => key,
        KeyText::Bad { .. } => panic!("it is a key"),
    }
}

#[test]
fn rows_that_wait_for_an_operator_withdraw_on_disk_what_does_not_concern_him() {
    let policy = test_rows::policy_row(1);
    let narrower = PolicyRow { destinations: Vec::new(), ..policy.clone() };
    let held = [key(1)].into();
    let old = SnapshotRows { policies: vec![policy.clone()], ..snapshot() };
    let peers = vec![PeerRow { allowed_ips: Box::default(), ..peer_row(3) }];
    let taken_at = SystemTime::UNIX_EPOCH + Duration::from_secs(9);
    let new = SnapshotRows { policies: vec![narrower.clone()], peers, taken_at, ..snapshot() };
    let change = ChangedRows {
        policies: [(policy.id, Some(narrower))].into(),
        peers: [(peer_row(1).device_id, vec![]), (peer_row(2).device_id, vec![])].into(),
        taken_at,
        ..changed()
    };
    for read in [Rows::Everything(new.clone().into()), Rows::Changed(change.into())] {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(cache(folder.path()));
        assert!(writer.write_around(&read, &held).is_none(), "no rows hold the peer");
        writer.replace(&old).unwrap();
        assert_eq!(writer.write_around(&read, &held).unwrap().unwrap(), Kept::All);
        let kept = cache(folder.path()).load("fra-1").unwrap().unwrap();
        let tables = withdrawn::Tables::after(kept);
        assert_eq!(tables.policies[&policy.id].destinations, [], "narrower");
        let of = |number: u8| tables.peers.get(&peer_row(number).device_id).map_or(0, Vec::len);
        assert_eq!([of(1), of(2), of(3)], [1, 0, 1], "the held peer alone stays");
    }
}

#[test]
fn network_that_the_row_of_a_held_peer_lost_is_not_kept() {
    let site = |text: &str| text.parse().unwrap();
    let row = |sites: &[&str]| PeerRow {
        allowed_ips: sites.iter().map(|it| site(it)).collect(),
        ..peer_row(1)
    };
    let old = test_rows::snapshot(vec![row(&["192.168.0.0/24", "192.168.1.0/24"])]);
    let new = test_rows::snapshot(vec![row(&["192.168.1.0/24", "192.168.2.0/24"])]);
    let (old, vpn_cidr) = (withdrawn::Tables::of(&old), old.gateway.vpn_cidr);
    let kept = around::snapshot(old, vpn_cidr, &new, &[peer_row(1).device_id].into());
    assert_eq!(kept.peers, [row(&["192.168.1.0/24"])]);
}

#[test]
fn rows_without_a_checksum_and_those_of_another_gateway_hold_no_peer_on_disk() {
    let folder = tempfile::tempdir().unwrap();
    let cache = cache(folder.path());
    let mut writer = Writer::new(cache.clone());
    let (new, held) = (Rows::Everything(snapshot().into()), [key(1)].into());
    let bare = serde_json::to_string(&Line::<_, ()>::Snapshot(snapshot())).unwrap();
    std::fs::write(cache.path(), &bare).unwrap();
    assert!(writer.write_around(&new, &held).is_none());
    assert_eq!(std::fs::read_to_string(cache.path()).unwrap(), bare);
    let mut other = snapshot();
    other.gateway.name = "another".into();
    writer.replace(&other).unwrap();
    assert!(writer.write_around(&new, &held).is_none());
    cache.load("another").unwrap().unwrap();
}

#[test]
fn what_later_changes_say_of_held_peers_only_narrows_what_is_on_disk() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = Writer::new(cache(folder.path()));
    let (device, other) = (peer_row(1).device_id, peer_row(2).device_id);
    writer.replace(&snapshot()).unwrap();
    writer.write_around(&Rows::Everything(snapshot().into()), &[key(1)].into()).unwrap().unwrap();
    let change =
        |rows: [(DeviceId, Vec<PeerRow>); 2]| ChangedRows { peers: rows.into(), ..changed() };
    let on_disk =
        || withdrawn::Tables::after(cache(folder.path()).load("fra-1").unwrap().unwrap()).peers;
    let revoked_at = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(9));
    let revoked = PeerRow { revoked_at, ..peer_row(1) };
    // The device of the held peer ends at a time, then its rows are deleted, too.
    writer.append_around(&change([(device, vec![revoked.clone()]), (other, vec![])])).unwrap();
    writer.append_around(&change([(device, vec![]), (other, vec![peer_row(2)])])).unwrap();
    assert_eq!(on_disk()[&device], [revoked]);
    assert_eq!(on_disk()[&other], [peer_row(2)]);
    writer.release();
    writer.append_around(&change([(device, vec![]), (other, vec![])])).unwrap();
    assert!(on_disk().get(&device).is_none_or(Vec::is_empty), "confirmed");
}

#[test]
fn full_disk_withdraws_no_peer_whose_removal_waits() {
    let disk = Disk::of(512 * 1024);
    let cache = cache(disk.path());
    let mut writer = Writer::new(cache.clone());
    writer.replace(&snapshot()).unwrap();
    disk.fill();
    let read = |number: u8| {
        let mut change = change(number, vec![]);
        change.peers.extend([(peer_row(1).device_id, vec![]), (peer_row(4).device_id, vec![])]);
        Rows::Changed(change.into())
    };
    let mut kept = (0..100).map(|_| writer.write_around(&read(2), &[key(1)].into()).unwrap());
    assert!(kept.any(|kept| kept.unwrap() == Kept::Withdrawals));
    assert_eq!(restored(&cache), ["10.64.0.1", "10.64.0.3"]);
    let Rows::Changed(change) = read(3) else { panic!("it is a change") };
    assert_eq!(writer.append_around(&change).unwrap(), Kept::Withdrawals);
    assert_eq!(restored(&cache), ["10.64.0.1"]);
}
