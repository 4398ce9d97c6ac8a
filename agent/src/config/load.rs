//! Loads a [`Config`] from a file and the environment, or says in one sentence what is wrong.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use figment::error::{Actual, Kind};
use figment::providers::{Format, Toml};
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};

use gatepost::reconcile::SyncMode;

use super::error::{Hint, Origin};
use super::url::BrokerUrl;
use super::{Config, ConfigError, DEFAULT_FILE, SecretSearch};

/// Where a configuration comes from. For this process: [`Source::of_process`].
#[derive(Debug, Clone, Default)]
pub struct Source {
    /// `--config` or `GATEPOST_CONFIG`. `None`: the default file, which need not exist.
    pub file: Option<PathBuf>,
    /// The environment.
    pub variables: BTreeMap<String, String>,
}

impl Source {
    /// The file that the command line named, and this process's environment.
    #[must_use]
    pub fn of_process(file: Option<PathBuf>) -> Self {
        let text = |os: std::ffi::OsString| os.to_string_lossy().into_owned();
        let variables = std::env::vars_os().map(|(name, value)| (text(name), text(value)));
        Self { file, variables: variables.collect() }
    }

    /// The configuration file.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.file.clone().unwrap_or_else(|| DEFAULT_FILE.into())
    }

    /// The names of the variables that override keys of the file.
    pub fn variables(&self) -> impl Iterator<Item = &str> {
        let others = ["GATEPOST_CONFIG", "GATEPOST_LOG"];
        let names = self.variables.keys().map(String::as_str);
        names.filter(move |name| name.starts_with("GATEPOST_") && !others.contains(name))
    }
}

/// Reads, merges and checks a configuration. Reads no secret.
///
/// # Errors
/// Any [`ConfigError`] except those of secrets and missing keys, which come when they are needed.
pub fn load(source: Source) -> Result<Config, ConfigError> {
    let file = source.path();
    let text = match std::fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound && source.file.is_none() => {
            String::new()
        }
        Err(error) => return Err(ConfigError::Unreadable { path: file, source: error }),
    };
    check_syntax(&text, &file)?;
    let (overrides, mut warnings) = Overrides::read(&source.variables)?;
    let mut figment = Figment::from(Toml::string(&text)).merge(&overrides);
    if figment.extract_inner::<String>("sync.mode").is_ok_and(|mode| mode == "turns") {
        warnings.push(TURNS_ARE_GONE.to_owned());
        figment = figment.merge(("sync.mode", "auto"));
    }
    let mut config: Config =
        figment.extract().map_err(|error| explain(error, &file, &overrides))?;
    let credentials_dir = source.variables.get("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    config.secret_search = SecretSearch::Gateway { credentials_dir };
    config.warnings = warnings;
    config.warnings.extend(config.hints.url.as_ref().and_then(BrokerUrl::warning));
    config.file = file;
    config.control.socket = config.path(&config.control.socket);
    config.cache.file = config.path(&config.cache.file);
    check_ranges(&config, &overrides)?;
    Ok(config)
}

/// The sections of the configuration.
const SECTIONS: [&str; 13] = [
    "gateway",
    "database",
    "sync",
    "hints",
    "interface",
    "firewall",
    "guard",
    "stale",
    "report",
    "metrics",
    "control",
    "cache",
    "log",
];

const TURNS_ARE_GONE: &str = "`sync.mode` is \"turns\", which means \"auto\" in this version and is an error in \
    the next: gateways no longer take turns. Remove the line, or write \"auto\"";

/// Variables with the prefix `GATEPOST_` that are not keys.
const NOT_KEYS: [&str; 2] = ["GATEPOST_CONFIG", "GATEPOST_LOG"];

/// The keys that the environment overrides: section, key, value.
#[derive(Default)]
struct Overrides(BTreeMap<&'static str, BTreeMap<String, String>>);

impl Overrides {
    /// Splits `GATEPOST_<SECTION>_<KEY>`. A variable of an unknown section is only a warning, and so is
    /// one that a container orchestrator sets for a service named `gatepost` or `gatepost-metrics`.
    fn read(variables: &BTreeMap<String, String>) -> Result<(Self, Vec<String>), ConfigError> {
        let (mut overrides, mut warnings) = (Self::default(), Vec::new());
        for (variable, value) in variables {
            let Some(name) = variable.strip_prefix("GATEPOST_") else { continue };
            if NOT_KEYS.contains(&variable.as_str()) || name.starts_with("TEST_") {
                continue;
            }
            if is_of_a_service(name) {
                warnings.push(format!(
                    "environment variable {variable} is ignored: it looks like one that a container \
                     orchestrator sets for a service"
                ));
                continue;
            }
            let name = name.to_ascii_lowercase();
            let (section, key) = name.split_once('_').unwrap_or((&name, ""));
            match SECTIONS.iter().find(|known| **known == section) {
                Some(section) => {
                    overrides.0.entry(section).or_default().insert(key.to_owned(), value.clone());
                }
                None => warnings.push(format!(
                    "environment variable {variable} is ignored: unknown section `{section}`{}",
                    Hint::nearest(section, &SECTIONS)
                )),
            }
        }
        Ok((overrides, warnings))
    }

    fn origin(&self, section: &str, key: &str, file: &std::path::Path) -> Origin {
        if self.0.get(section).is_some_and(|keys| keys.contains_key(key)) {
            Origin::Variable(format!("GATEPOST_{section}_{key}").to_ascii_uppercase())
        } else {
            Origin::File(file.to_owned())
        }
    }
}

/// Such as `SERVICE_HOST`, `METRICS_SERVICE_PORT`, `METRICS_PORT_7171_TCP_ADDR`. No key contains these words.
fn is_of_a_service(name: &str) -> bool {
    let name = format!("_{name}_");
    name.contains("_SERVICE_") || name.contains("_PORT_")
}

impl Provider for &Overrides {
    fn metadata(&self) -> Metadata {
        Metadata::named("environment")
    }

    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        let sections = self.0.iter().map(|(section, keys)| {
            let keys = keys.iter().map(|(key, value)| (key.clone(), Value::from(value.as_str())));
            ((*section).to_owned(), Value::from(keys.collect::<Dict>()))
        });
        Ok(Profile::Default.collect(sections.collect()))
    }
}

/// Turns the deserializer's error into one sentence.
fn explain(error: figment::Error, file: &std::path::Path, overrides: &Overrides) -> ConfigError {
    let path = |at: usize| error.path.get(at).map_or("", String::as_str);
    let origin = |key: &str| overrides.origin(path(0), key, file);
    let key = error.path.join(".");
    let value = |why: String| ConfigError::Value { origin: origin(path(1)), key: key.clone(), why };
    match &error.kind {
        Kind::UnknownField(field, known) if SECTIONS.contains(&path(0)) => ConfigError::Unknown {
            origin: origin(field),
            what: "key",
            key: format!("{}.{field}", path(0)),
            hint: Hint::nearest(field, known),
        },
        Kind::UnknownField(field, known) => ConfigError::Unknown {
            origin: Origin::File(file.to_owned()),
            what: "section",
            key: field.clone(),
            hint: Hint::nearest(field, known),
        },
        Kind::UnknownVariant(word, known) => {
            value(format!("is {word:?}{}", Hint::nearest(word, known)))
        }
        // The value is not repeated: in the wrong place it may be a URL with a password.
        Kind::InvalidType(found, _) | Kind::InvalidValue(found, _)
            if error.path.len() == 1 && SECTIONS.contains(&path(0)) =>
        {
            value(format!("must be a section [{key}], not {}", kind_of(found)))
        }
        Kind::InvalidType(found, wanted) | Kind::InvalidValue(found, wanted) => {
            value(format!("must be {wanted}, not {}", kind_of(found)))
        }
        Kind::Message(message) => value(message.clone()),
        other => value(other.to_string()),
    }
}

/// Finds syntax errors before the deserializer does, because its errors quote the whole line, which may
/// contain a password.
fn check_syntax(text: &str, file: &std::path::Path) -> Result<(), ConfigError> {
    let Err(error) = Toml::from_str::<Dict>(text) else { return Ok(()) };
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    Err(ConfigError::Syntax {
        path: file.to_owned(),
        line: before.matches('\n').count() + 1,
        column: before[line_start..].chars().count() + 1,
        message: error.message().trim_end().replace('\n', ", "),
    })
}

fn kind_of(value: &Actual) -> &'static str {
    match value {
        Actual::Bool(_) => "true or false",
        Actual::Unsigned(_) | Actual::Signed(_) | Actual::Float(_) => "a number",
        Actual::Char(_) | Actual::Str(_) | Actual::Bytes(_) => "a string",
        Actual::Seq => "a list",
        Actual::Map => "a table",
        _ => "another kind of value",
    }
}

/// Rejects values that are well-formed but out of range.
fn check_ranges(config: &Config, overrides: &Overrides) -> Result<(), ConfigError> {
    let wrong = |section: &str, key: &str, why: String| {
        let origin = overrides.origin(section, key, &config.file);
        Err(ConfigError::Value { origin, key: format!("{section}.{key}"), why })
    };
    let sync = &config.sync;
    if sync.mode == SyncMode::Listen && config.database.token_file.is_some() {
        let why = "is \"listen\", but gateways with a token share sessions, in which none can listen: \
                   write \"auto\"";
        return wrong("sync", "mode", why.into());
    }
    if sync.mode == SyncMode::Hints && config.hints.url.is_none() {
        let why = "is \"hints\", which needs hints.url: name the NATS servers, or write \"auto\"";
        return wrong("sync", "mode", why.into());
    }
    let at_least = [
        ("sync", "poll_interval", sync.poll_interval, Duration::from_millis(100)),
        ("sync", "resync_interval", Some(sync.resync_interval), Duration::from_secs(10)),
        ("sync", "statement_timeout", Some(sync.statement_timeout), Duration::from_secs(1)),
        ("report", "heartbeat", config.report.heartbeat, Duration::from_secs(1)),
        ("report", "interval", Some(config.report.interval), Duration::from_secs(1)),
    ];
    for (section, key, value, least) in at_least {
        if let Some(value) = value.filter(|value| *value < least) {
            let (value, least) =
                (humantime::format_duration(value), humantime::format_duration(least));
            return wrong(section, key, format!("is {value}, but must be at least {least}"));
        }
    }
    let mtu = config.interface.mtu_bytes;
    if !(1280..=65_535).contains(&mtu) {
        let why = format!("is {mtu}, but must be from 1280 (the minimum of IPv6) to 65535");
        return wrong("interface", "mtu_bytes", why);
    }
    if let Err(error) = config.log.filter.parse::<tracing_subscriber::EnvFilter>() {
        let why =
            format!("is no filter ({error}): write one like those of RUST_LOG, such as debug");
        return wrong("log", "filter", why);
    }
    if config.gateway.name.as_deref().is_some_and(|name| name.trim().is_empty()) {
        return wrong("gateway", "name", "is empty: write the name as in gateways.name".into());
    }
    Ok(())
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
