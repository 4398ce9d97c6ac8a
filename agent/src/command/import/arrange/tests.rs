use super::*;

fn found(addresses: &[&str], peers: &[&[&str]]) -> Found {
    let prefixes =
        |texts: &[&str]| texts.iter().map(|it| it.parse().unwrap()).collect::<Vec<IpNet>>();
    let key = |number: usize| PublicKey::from_bytes([u8::try_from(number).unwrap(); 32]).unwrap();
    let peer = |(number, allowed): (usize, &&[&str])| FoundPeer {
        line: Some(10 * number),
        name: Some(PeerName { user: "Alice".to_owned(), device: None }),
        public_key: key(number),
        preshared_key: None,
        allowed_ips: prefixes(allowed),
    };
    Found {
        public_key: key(100),
        listen_port: 51820,
        fwmark: 0,
        mtu_bytes: None,
        addresses: prefixes(addresses),
        peers: (1..).zip(peers).map(peer).collect(),
    }
}

fn rows(arrangement: &Arrangement) -> Vec<String> {
    let row = |peer: &ArrangedPeer| {
        format!("{}/{} {} {:?}", peer.user, peer.device, peer.assigned_ip, peer.allowed_ips)
    };
    arrangement.peers.iter().map(row).collect()
}

#[test]
fn addresses_sites_and_names_become_rows() {
    let found = found(
        &["fd99::1/64", "10.99.0.1/24"],
        &[
            &["10.99.0.2/32", "fd99::2/128"],
            &["10.99.0.3/32", "192.168.5.0/24"],
            &["192.168.6.0/24"],
        ],
    );
    let Ok(arranged) = arrange(&found, "wg0") else { panic!("refused") };
    assert_eq!(
        (arranged.pool.to_string(), arranged.own.to_string()),
        ("10.99.0.0/24".into(), "10.99.0.1".into())
    );
    assert_eq!(
        rows(&arranged),
        [
            "Alice/wg0 10.99.0.2 [fd99::2/128]",
            "Alice/wg0-2 10.99.0.3 [192.168.5.0/24]",
            "Alice/wg0-3 10.99.0.254 [192.168.6.0/24]",
        ]
    );
    let sites: Vec<_> = arranged.site_prefixes.iter().map(ToString::to_string).collect();
    assert_eq!(sites, ["192.168.5.0/24", "192.168.6.0/24", "fd99::/64"]);
    let notes: Vec<_> = arranged.notes.iter().map(ToString::to_string).collect();
    assert!(
        notes.len() == 1 && notes[0].starts_with("line 30: this peer has no single address"),
        "{notes:?}"
    );
}

#[test]
fn single_addresses_get_the_smallest_network_around_them() {
    let peers: [&[&str]; 2] = [&["10.99.0.2/32"], &["10.99.0.77/32"]];
    let Ok(arranged) = arrange(&found(&["10.99.0.1/32"], &peers), "wg0") else { panic!("refused") };
    assert_eq!(arranged.pool.to_string(), "10.99.0.0/25");
}

#[test]
fn what_no_row_can_say_is_named_with_its_line() {
    let found = found(
        &["10.99.0.1/24"],
        &[
            &["10.99.0.1/32"],
            &["10.99.0.255/32"],
            &["10.99.0.4/32", "0.0.0.0/0"],
            &["10.99.0.4/32"],
        ],
    );
    let Err(wrong) = arrange(&found, "wg0") else { panic!("accepted") };
    let lines: Vec<_> = wrong.iter().map(ToString::to_string).collect();
    for part in [
        "line 10: 10.99.0.1 is the gateway's own address",
        "line 20: 10.99.0.255 is the first or last of 10.99.0.0/24",
        "line 30: 0.0.0.0/0 is wider than /8",
        "line 40: 10.99.0.4/32, which the section of line 30 has, too",
    ] {
        assert!(lines.iter().any(|line| line.starts_with(part)), "{part}: {lines:?}");
    }
    assert_eq!(lines.len(), 4, "{lines:?}");
}
