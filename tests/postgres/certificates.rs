//! Certificates of servers and clients, and methods of login, on a server that changes them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use gatepost::store::{
    ConnectOptions, CreateRole, Method, Source, Store, StoreError, Tls, TlsFiles, grant,
};

use crate::fault::row;
use crate::login::{Site, hello, openssl};
use crate::world::end_sessions;

/// A password of the role that no agent knows yet.
const ROTATED: &str = "battery staple";

const SCRAM: &str = "hostssl all all 127.0.0.1/32 scram-sha-256";

#[tokio::test]
async fn certificates_are_accepted_as_by_libpq_and_refused_in_words() {
    let site = Site::new().await;
    let dir = site.folder.display();
    openssl(&format!(
        "cd {dir}
         # As PostgreSQL's manual says: CA:TRUE, and no name but the common one.
         openssl req -new -x509 -days 2 -nodes -subj /CN=localhost -out own.pem -keyout own.key
         openssl req -new -x509 -days 2 -nodes -subj /CN=db7 -out named.pem -keyout named.key
         openssl req -new -x509 -days 2 -nodes -subj /CN=localhost -out same.pem -keyout same.key
         printf 'basicConstraints=CA:TRUE' >authority; cp server.key old.key
         openssl x509 -req -in server.csr -signkey old.key -days -1 -extfile authority -out old.pem
         printf '[c]\\ndatabase=index\\nnew_certs_dir=.\\nserial=number\\ndefault_md=sha256\\npolicy=p\\n[p]\\ncommonName=supplied\\n' >conf
         touch index; echo 01 >number
         openssl ca -batch -config conf -name c -cert ca.pem -keyfile ca.key -in server.csr \\
             -startdate 20200101000000Z -enddate 20200102000000Z -extfile san -out expired.pem
         cp server.key expired.key"
    ));
    let trusting = |name| ConnectOptions { tls_files: site.trusting(name), ..site.options() };
    let refusal = async |options: &ConnectOptions| {
        let error = hello(options).await.unwrap_err();
        assert!(matches!(error, StoreError::Tls { .. }), "{error}");
        error.to_string()
    };

    site.serve("own", SCRAM);
    assert_eq!(hello(&trusting("own.pem")).await.unwrap(), "g1");
    let words = refusal(&trusting("same.pem")).await;
    assert!(words.contains("in database.tls_ca_file"), "another with the same names: {words}");
    let words = refusal(&trusting("ca.pem")).await;
    assert!(words.contains("in database.tls_ca_file"), "{words}");

    site.serve("named", SCRAM);
    let words = refusal(&trusting("named.pem")).await;
    assert!(words.contains("certificate is for db7, not for localhost"), "{words}");
    let mut with_address = trusting("named.pem");
    with_address.url = with_address.url.replace("localhost", "db7") + "?hostaddr=127.0.0.1";
    assert_eq!(hello(&with_address).await.unwrap(), "g1");
    let any_name = ConnectOptions { tls: Tls::VerifyCa, ..trusting("named.pem") };
    assert_eq!(hello(&any_name).await.unwrap(), "g1");

    for (certificate, trusted) in [("old", "old.pem"), ("expired", "ca.pem")] {
        site.serve(certificate, SCRAM);
        let words = refusal(&trusting(trusted)).await;
        assert!(words.contains("server's certificate expired at 20"), "{words}");
        assert!(words.ends_with("renew it on the server"), "{words}");
    }
}

#[tokio::test]
async fn methods_and_client_certificates_are_those_that_the_settings_name() {
    let site = Site::new().await;
    let admin = ConnectOptions::new(site.cluster.socket_url("postgres", &site.database));
    for role in ["old", "clear", "open", "card"] {
        let create = CreateRole::IfAbsent(Some("correct horse".to_owned().into()));
        grant(&admin, "g1", role, &create).await.unwrap();
    }
    let md5 = "set password_encryption = 'md5'; alter role old password 'correct horse'";
    site.cluster.psql(&site.database, md5);
    let dir = site.folder.display();
    openssl(&format!(
        "cd {dir}
         openssl req -newkey rsa:2048 -nodes -subj /CN=card -keyout card.key -out card.csr
         printf 'basicConstraints=CA:FALSE' >leaf
         openssl x509 -req -in card.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile leaf -out card.pem
         cp ca.pem data/root.crt; chmod 644 data/root.crt
         echo \"ssl_ca_file = 'root.crt'\" >>data/postgresql.auto.conf"
    ));
    site.serve(
        "server",
        "hostssl all old 127.0.0.1/32 md5
         hostssl all clear 127.0.0.1/32 password
         hostssl all open 127.0.0.1/32 trust
         hostssl all card 127.0.0.1/32 cert
         host all all 127.0.0.1/32 scram-sha-256",
    );
    let of = |role: &str, methods: Option<&str>| ConnectOptions {
        url: site.cluster.tcp_url(role, &site.database),
        require_auth: methods.map(|methods| methods.parse().unwrap()),
        ..site.options()
    };
    let refused = async |options: &ConnectOptions| match hello(options).await.unwrap_err() {
        StoreError::Method { refused, .. } => refused.asked,
        error => panic!("{error}"),
    };
    assert_eq!(hello(&of("agent", None)).await.unwrap(), "g1");
    assert_eq!(refused(&of("clear", None)).await, Method::Password);
    assert_eq!(refused(&of("open", None)).await, Method::None);
    // For one release, with a warning.
    assert_eq!(hello(&of("old", None)).await.unwrap(), "g1");
    assert_eq!(refused(&of("old", Some("scram-sha-256"))).await, Method::Md5);
    assert_eq!(refused(&of("agent", Some("!scram-sha-256"))).await, Method::ScramSha256);
    for (role, method) in [("clear", "password"), ("open", "none"), ("old", "md5")] {
        assert_eq!(hello(&of(role, Some(method))).await.unwrap(), "g1");
    }
    let words = hello(&of("clear", None)).await.unwrap_err().to_string();
    assert!(words.contains("asks for the password in clear text"), "{words}");
    assert!(words.contains("require_auth = \"scram-sha-256,password\" in section"), "{words}");
    // The requests are judged without TLS, too.
    let plain = ConnectOptions { tls: Tls::Disable, ..of("agent", Some("md5")) };
    assert_eq!(refused(&plain).await, Method::ScramSha256);
    let plain = ConnectOptions { tls: Tls::Disable, ..of("agent", None) };
    assert_eq!(hello(&plain).await.unwrap(), "g1");

    let files = |certificate: &str, key: &str| TlsFiles {
        certificate: Some(site.folder.join(certificate)),
        key: Some(site.folder.join(key)),
        ..site.trusting("ca.pem")
    };
    let card = |files| ConnectOptions { password: None, tls_files: files, ..of("card", None) };
    assert_eq!(hello(&card(files("card.pem", "card.key"))).await.unwrap(), "g1");
    let words = hello(&card(site.trusting("ca.pem"))).await.unwrap_err().to_string();
    assert!(words.contains("set database.tls_cert_file and database.tls_key_file"), "{words}");
    let words = hello(&card(files("other.pem", "other.key"))).await.unwrap_err().to_string();
    assert!(words.contains("does not know the authority of our client certificate"), "{words}");
    let words = hello(&card(files("card.pem", "other.key"))).await.unwrap_err().to_string();
    assert!(
        words.contains("is not the key of the certificate in database.tls_cert_file"),
        "{words}"
    );
    let half = TlsFiles { key: None, ..files("card.pem", "card.key") };
    let words = hello(&card(half)).await.unwrap_err().to_string();
    assert!(words.contains("is set and database.tls_key_file is not: "), "{words}");
}

#[tokio::test]
async fn rotated_password_and_certificate_are_read_again_when_a_login_fails() {
    let site = Site::new().await;
    let (password, ca) = (site.folder.join("password"), site.folder.join("trusted.pem"));
    std::fs::write(&password, "correct horse").unwrap();
    std::fs::copy(site.folder.join("ca.pem"), &ca).unwrap();
    let reads = Arc::new(AtomicUsize::new(0));
    let source: Source = Arc::new({
        let (reads, options) = (reads.clone(), site.options());
        let files = site.trusting("trusted.pem");
        move || {
            reads.fetch_add(1, Ordering::Relaxed);
            let text = std::fs::read_to_string(&password).map_err(|error| error.to_string())?;
            let (password, tls_files) = (Some(text.into()), files.clone());
            Ok(ConnectOptions { password, tls_files, ..options.clone() })
        }
    });
    let store = Store::connect(&site.options()).unwrap();
    store.follow(source).unwrap();
    let end_sessions = || {
        site.cluster.psql(&site.database, end_sessions!("usename = 'agent'"));
    };
    assert_eq!(store.hello().await.unwrap().gateway_name, "g1");
    assert_eq!(reads.load(Ordering::Relaxed), 1, "a login that succeeds reads nothing again");

    site.cluster.psql(&site.database, &format!("alter role agent password '{ROTATED}'"));
    store.hello().await.expect("a session goes on");
    // Nothing that was read is needed again until a login is refused.
    std::fs::remove_file(&ca).unwrap();
    end_sessions();
    // The first call may find the session ended.
    let refused = async || match store.hello().await {
        Err(StoreError::Unreachable { .. } | StoreError::NotReady { .. }) => {
            store.hello().await.unwrap_err()
        }
        outcome => outcome.unwrap_err(),
    };
    let error = refused().await;
    assert!(matches!(error, StoreError::Refused { .. }), "{error}");
    std::fs::write(site.folder.join("password"), ROTATED).unwrap();
    let error = store.hello().await.unwrap_err();
    assert!(matches!(error, StoreError::Refused { .. }), "no part of them is followed: {error}");
    std::fs::copy(site.folder.join("ca.pem"), &ca).unwrap();
    assert_eq!(store.hello().await.unwrap().gateway_name, "g1");

    // The server's certificate, and then what the agent trusts.
    let dir = site.folder.display();
    openssl(&format!(
        "cd {dir}; openssl req -new -x509 -days 2 -nodes -subj /CN=localhost -out own.pem -keyout own.key"
    ));
    site.serve("own", SCRAM);
    let error = refused().await;
    assert!(matches!(error, StoreError::Tls { .. }), "{error}");
    // A file that cannot be used is not followed.
    std::fs::write(&ca, "nothing").unwrap();
    assert!(matches!(store.hello().await, Err(StoreError::Tls { .. })));
    std::fs::remove_file(&ca).unwrap();
    assert!(matches!(store.hello().await, Err(StoreError::Tls { .. })));
    std::fs::copy(site.folder.join("own.pem"), &ca).unwrap();
    let renewed_at = Instant::now();
    assert_eq!(store.hello().await.unwrap().gateway_name, "g1");
    row(
        "certificate of the database's server replaced by one that the agent does not trust",
        "a new login is refused with that reason; followed once database.tls_ca_file has it",
        Some(renewed_at.elapsed()),
    );
}
