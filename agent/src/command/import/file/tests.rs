use super::*;

const FILE: &str = "\
[Interface]
Address = 10.99.0.1/24, fd99::1/64
ListenPort = 51820
PrivateKey = aAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAEA=
PostUp = iptables -t nat -A POSTROUTING -o eth0 -j MASQUERADE

# alice/laptop
[Peer]
PublicKey = hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=
AllowedIPs = 10.99.0.2/32, fd99::2/128
# PersistentKeepalive = 25

[peer] # bob
publickey = gCtIt9iGCMpVtL3bN/xnQrdx2yKmsw93Xv1IL5iJLws=
allowedips = 10.99.0.3
PersistentKeepalive = 25
";

#[test]
fn file_is_read_with_names_and_notes() {
    let Ok(Parsed { found, labels, notes }) = parse(FILE) else { panic!("refused") };
    assert_eq!((found.listen_port, found.fwmark, found.mtu_bytes), (51820, 0, None));
    let addresses: Vec<_> = found.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.99.0.1/24", "fd99::1/64"]);
    let peers: Vec<_> = found
        .peers
        .iter()
        .map(|peer| (peer.line, peer.name.as_ref().map(|name| name.user.as_str())))
        .collect();
    assert_eq!(peers, [(Some(8), Some("alice")), (Some(13), Some("bob"))]);
    let prefixes = |peer: usize| {
        found.peers[peer].allowed_ips.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(prefixes(0), ["10.99.0.2/32", "fd99::2/128"]);
    assert_eq!(prefixes(1), ["10.99.0.3/32"]);
    assert_eq!(labels.masquerades, Some(true));
    assert_eq!(notes.iter().map(|note| note.line).collect::<Vec<_>>(), [Some(5), Some(16)]);
}

#[test]
fn each_line_that_cannot_be_used_is_named_with_the_way_out() {
    let text = "\
Address = 10.0.0.1/24
[Interface]
PrivateKey = secret-that-is-no-key
ListenPort = 70000
MTU = many
Speed = 5
AllowedIPs = 10.0.0.2/32
[Peer]
PublicKey = short
AllowedIPs = 10.0.0.300/32
PresharedKey = another-secret
nonsense
[Peers]
PublicKey = ignored
[Peer]
AllowedIPs = 10.0.0.4/32
";
    let Err(wrong) = parse(text) else { panic!("accepted") };
    let lines: Vec<_> = wrong.iter().map(|remark| remark.line.unwrap_or_default()).collect();
    assert_eq!(lines, [1, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 15]);
    let text: String = wrong.iter().map(|remark| format!("{remark}\n")).collect();
    for part in [
        "line 4: ListenPort \"70000\" is no port: write 1 to 65535\n",
        "line 6: Speed is no setting of wg-quick: correct or remove it\n",
        "line 7: AllowedIPs belongs into [Peer]\n",
        "line 10: AllowedIPs \"10.0.0.300/32\" is no address or network: write one like 10.8.0.2/32\n",
        "line 15: this [Peer] has no PublicKey: add it, or remove the section\n",
    ] {
        assert!(text.contains(part), "{part}{text}");
    }
    assert!(!text.contains("secret"), "{text}");
}

#[test]
fn file_without_key_or_port_names_the_interface_as_the_way_out() {
    let Err(wrong) = parse("[Interface]\nAddress = 10.0.0.1/24\n") else { panic!("accepted") };
    let text: Vec<_> = wrong.iter().map(ToString::to_string).collect();
    assert!(text[0].starts_with("[Interface] has no PrivateKey"), "{text:?}");
    assert!(text[1].starts_with("[Interface] has no ListenPort"), "{text:?}");
    assert_eq!(text.len(), 2);
}
