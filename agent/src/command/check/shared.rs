//! Checks how a stolen login can affect others.

use gatepost::store::{PublicRights, SharedRole};

use super::finding::Finding;

/// Findings about the role of many gateways. What PUBLIC has is told, and is no fault.
pub fn shared_role(role: &SharedRole) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(logged(role));
    findings.extend(spoiled(role));
    if let Some((text, remedy)) = of_public(&role.role, &role.public) {
        findings.push(Finding::note("role", text, remedy));
    }
    findings
}

/// What PUBLIC lets this role do to those that share it, and how to take it away.
pub fn of_public(role: &str, public: &PublicRights) -> Option<(String, String)> {
    let allowed = [
        (
            public.makes_temporary_tables,
            "create temporary tables",
            format!("`revoke temporary on database {} from public`", public.database),
        ),
        (
            public.ends_sessions,
            "end each other's sessions",
            "`revoke execute on function pg_cancel_backend, pg_terminate_backend from public`"
                .to_owned(),
        ),
    ];
    let (can, remedies): (Vec<_>, Vec<_>) = allowed
        .into_iter()
        .filter(|(is_allowed, ..)| *is_allowed)
        .map(|(_, what, remedy)| (what, remedy))
        .unzip();
    (!can.is_empty()).then(|| {
        let text = format!("gateways share role {role}, which may {}", can.join(" and "));
        let remedy = format!(
            "a stolen gateway could disturb others; where no other program needs it, run {}",
            remedies.join(" and ")
        );
        (text, remedy)
    })
}

fn logged(role: &SharedRole) -> Option<Finding> {
    let set = |setting: &String| {
        let name = setting.split_whitespace().next().unwrap_or_default();
        format!("`alter role {} set {name} = 0`", role.role)
    };
    let remedies = role.logged_parameters.iter().map(set).collect::<Vec<_>>().join(" and ");
    if remedies.is_empty() {
        return None;
    }
    let remedy = format!("run {remedies} as superuser");
    let settings = role.logged_parameters.join(", ");
    // The server logs a statement that fails, whatever else it logs.
    let on_error = role.logged_parameters.iter().any(|it| it.contains("_on_error"));
    Some(if role.logs_statements || on_error {
        let text = format!("the server writes gateways' tokens into its log ({settings})");
        Finding::warning("role", text, remedy)
    } else {
        let text =
            format!("if the server logged statements, it would log gateways' tokens ({settings})");
        Finding::note("role", text, remedy)
    })
}

fn spoiled(role: &SharedRole) -> Option<Finding> {
    let SharedRole { role, public, spoiled, .. } = role;
    (!spoiled.is_empty()).then(|| {
        let text = format!(
            "role {role} has other settings than `gatepost grant` gave it, and a gateway that was stolen can \
             change them: {}",
            spoiled.join(", ")
        );
        let remedy = format!(
            "run `alter role {role} reset all` and `alter role {role} in database {} reset all` as a superuser, \
             then `gatepost grant --token GATEWAY --pool-role {role}`",
            public.database
        );
        Finding::warning("role", text, remedy)
    })
}

/// Schemas in which the control plane's triggers look for names, and in which the login may create something.
pub fn writable(schemas: &[String]) -> Option<Finding> {
    (!schemas.is_empty()).then(|| {
        let revoke = |schema: &String| format!("`revoke create on schema {schema} from public`");
        let text = format!(
            "the database role may create objects in schema {}, where triggers of your tables look for names: \
             a stolen login could run statements with the rights of gatepost_owner",
            schemas.join(", ")
        );
        let remedy = schemas.iter().map(revoke).collect::<Vec<_>>().join(" and ");
        Finding::warning("role", text, format!("run {remedy} as the owner of the database"))
    })
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    fn role() -> SharedRole {
        SharedRole {
            role: "gatepost_pool".into(),
            public: PublicRights { database: "vpn".into(), ..PublicRights::default() },
            logged_parameters: vec![],
            logs_statements: true,
            spoiled: vec![],
        }
    }

    #[test]
    fn tokens_in_the_log_are_a_warning_and_what_public_has_is_a_note() {
        assert_eq!(shared_role(&role()), []);
        let setting =
            |name: &str| SharedRole { logged_parameters: vec![format!("{name} = -1")], ..role() };
        let logged = setting("log_parameter_max_length");
        let [finding] = &shared_role(&logged)[..] else { panic!("one finding") };
        assert_eq!(finding.level, Level::Warning);
        let remedy = finding.remedy.as_deref().unwrap();
        assert!(remedy.contains("alter role gatepost_pool set log_parameter_max_length = 0"));
        let unlogged = SharedRole { logs_statements: false, ..logged };
        assert_eq!(shared_role(&unlogged)[0].level, Level::Note);
        let on_error = setting("log_parameter_max_length_on_error");
        let on_error = SharedRole { logs_statements: false, ..on_error };
        assert_eq!(shared_role(&on_error)[0].level, Level::Warning);
        let public =
            PublicRights { makes_temporary_tables: true, ends_sessions: true, ..role().public };
        let [finding] = &shared_role(&SharedRole { public, ..role() })[..] else {
            panic!("one finding")
        };
        assert_eq!(finding.level, Level::Note);
        assert!(finding.text.ends_with("create temporary tables and end each other's sessions"));
        assert!(finding.remedy.as_deref().unwrap().contains("temporary on database vpn"));
    }

    #[test]
    fn a_role_that_was_spoiled_and_a_schema_that_is_open_are_warnings_with_the_statement() {
        let spoiled = vec!["statement_timeout = \"0\" instead of '35s'".to_owned()];
        let [finding] = &shared_role(&SharedRole { spoiled, ..role() })[..] else {
            panic!("one finding")
        };
        assert_eq!(finding.level, Level::Warning);
        let remedy = finding.remedy.as_deref().unwrap();
        assert!(
            remedy.contains("`alter role gatepost_pool in database vpn reset all`"),
            "{remedy}"
        );
        assert_eq!(writable(&[]), None);
        let open = writable(&["public".to_owned()]).unwrap();
        assert!(open.remedy.unwrap().contains("`revoke create on schema public from public`"));
    }
}
