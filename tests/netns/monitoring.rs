//! A real Prometheus scrapes the agent, and finds what dashboard and alert rules ask for.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use crate::lab::{LAN_OTHER, LAN_SERVER, Lab, eventually, policy_rows};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/monitoring");
const PORT: u16 = 9990;

/// A Prometheus on the gateway, which ends with the test.
struct Prometheus<'a> {
    child: Child,
    lab: &'a Lab,
}

impl<'a> Prometheus<'a> {
    /// Starts one with the configuration that we ship, but scrapes each second.
    fn start(lab: &'a Lab) -> Self {
        let folder = lab.folder.path();
        let config = fs::read_to_string(format!("{FOLDER}/prometheus.yml")).unwrap();
        let often = config.replace("scrape_interval: 15s", "scrape_interval: 1s");
        assert_ne!(config, often);
        fs::write(folder.join("prometheus.yml"), often).unwrap();
        fs::copy(format!("{FOLDER}/gatepost.rules.yml"), folder.join("gatepost.rules.yml"))
            .unwrap();
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", folder.join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("tsdb").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{PORT}"))
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.join("prometheus.log")).unwrap());
        Self { child: lab.gateway.spawn(&mut command), lab }
    }

    /// The number of series that an expression gives; `None`: Prometheus does not answer yet.
    fn series(&self, expression: &str) -> Option<usize> {
        let query: String = expression.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let mut reply = String::new();
        self.lab.gateway.within(|| {
            let mut stream = TcpStream::connect(("127.0.0.1", PORT)).ok()?;
            let request = format!("GET /api/v1/query?query={query} HTTP/1.0\r\n\r\n");
            stream.write_all(request.as_bytes()).ok()?;
            stream.read_to_string(&mut reply).ok()
        })?;
        let answer: serde_json::Value =
            serde_json::from_str(reply.split_once("\r\n\r\n")?.1).ok()?;
        assert_eq!(answer["status"], "success", "{expression}: {answer}");
        Some(answer["data"]["result"].as_array().unwrap().len())
    }
}

impl Drop for Prometheus<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Every query of the dashboard, with its variables filled in.
fn dashboard_queries() -> Vec<String> {
    let text = fs::read_to_string(format!("{FOLDER}/grafana-dashboard.json")).unwrap();
    let dashboard: serde_json::Value = serde_json::from_str(&text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    let queries = targets.map(|target| target["expr"].as_str().unwrap());
    queries
        .map(|query| query.replace("$__rate_interval", "30s").replace("$instance", ".+"))
        .collect()
}

/// The metrics of an agent that the alert rules look at: no bell runs here.
fn metrics_of_rules() -> Vec<String> {
    let rules = fs::read_to_string(format!("{FOLDER}/gatepost.rules.yml")).unwrap();
    let words = rules.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let mut metrics: Vec<_> = words
        .filter(|word| word.starts_with("gatepost_") && !word.starts_with("gatepost_bell_"))
        .map(str::to_owned)
        .collect();
    metrics.dedup();
    metrics
}

/// As any host of the LAN could read it, if the metrics listened there.
#[test]
fn metrics_listen_on_the_gateway_alone_and_name_no_peer_unless_they_are_asked_to() {
    let lab = Lab::open();
    let alice = lab.client("alice");
    lab.database.exec(&alice.rows());
    let _agent = lab.start();
    alice.connect();
    let listening = lab.gateway.run("ss", &["-Hltn", "sport = :7171"]);
    let addresses = Vec::from_iter(listening.lines().filter_map(|it| it.split_whitespace().nth(3)));
    assert_eq!(addresses, ["127.0.0.1:7171"]);
    let page = lab.gateway.within(|| {
        let mut stream = TcpStream::connect("127.0.0.1:7171").unwrap();
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).unwrap();
        page
    });
    assert!(page.contains("gatepost_peers{state=\"in_kernel\"} 1"), "{page}");
    for secret in ["alice", &alice.key, "10.99.1"] {
        assert!(!page.contains(secret), "{secret}: {page}");
    }
}

#[test]
fn dashboard_and_rules_find_what_a_real_prometheus_scrapes() {
    let lab = Lab::open();
    lab.write_config("[metrics]\nper_peer = true\n");
    let alice = lab.client("alice");
    lab.database.exec(&alice.rows());
    lab.database.exec(&policy_rows("alice", "alice", &format!("{LAN_SERVER}/32")));
    let _agent = lab.start();
    alice.connect();
    let prometheus = Prometheus::start(&lab);
    eventually("Prometheus scrapes the agent", || {
        prometheus.series("gatepost_ready == 1") == Some(1)
    });
    // A change, traffic and a denied packet.
    lab.database.exec("update policies set priority = 7");
    alice.must_reach(LAN_SERVER, "a policy allows it");
    assert!(!alice.reaches(LAN_OTHER));
    let queries = dashboard_queries();
    assert!(queries.len() > 20, "{queries:?}");
    for query in queries.iter().chain(&metrics_of_rules()) {
        eventually(query, || prometheus.series(query).is_some_and(|series| series > 0));
    }
    for (metric, at_least) in [
        ("gatepost_peer_rx_bytes_total{user=\"alice\",device=\"alice-laptop\"} > 0", 1),
        ("gatepost_peer_last_handshake_timestamp_seconds > 0", 1),
        ("gatepost_peers{state=\"connected\"} == 1", 1),
        ("gatepost_denied_packets_total > 0", 1),
        ("gatepost_commit_to_kernel_seconds_count > 0", 1),
        ("gatepost_rx_bytes_total > 0", 1),
        ("process_cpu_seconds_total{job=\"gatepost\"} > 0", 1),
    ] {
        eventually(metric, || prometheus.series(metric).is_some_and(|it| it >= at_least));
    }
    assert_eq!(
        prometheus.series("ALERTS{alertname=~\"Gatepost.*\",alertstate=\"firing\"}"),
        Some(0)
    );
}
