//! What gateways that share one role can do to each other.

use gatepost::store::SharedRole;

use super::finding::Finding;

/// Findings about the role of many gateways. What PUBLIC has is told, and is no fault.
pub fn shared_role(role: &SharedRole) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(role.logged_parameters.as_ref().map(|length| logged(role, length)));
    let allowed = [
        (
            role.makes_temporary_tables,
            "create temporary tables",
            format!("`revoke temporary on database {} from public`", role.database),
        ),
        (
            role.ends_sessions,
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
    if !can.is_empty() {
        findings.push(Finding::note(
            "role",
            format!("gateways share role {}, which may {}", role.role, can.join(" and ")),
            format!(
                "a stolen gateway could disturb others; where no other program needs it, run {}",
                remedies.join(" and ")
            ),
        ));
    }
    findings
}

fn logged(role: &SharedRole, length: &str) -> Finding {
    let remedy =
        format!("run `alter role {} set log_parameter_max_length = 0` as superuser", role.role);
    if role.logs_statements {
        let text = format!(
            "the server writes gateways' tokens into its log (log_parameter_max_length = {length})"
        );
        return Finding::warning("role", text, remedy);
    }
    let text = format!(
        "if the server logged statements, it would log gateways' tokens (log_parameter_max_length = \
         {length})"
    );
    Finding::note("role", text, remedy)
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    fn role() -> SharedRole {
        SharedRole {
            role: "gatepost_pool".into(),
            database: "vpn".into(),
            makes_temporary_tables: false,
            ends_sessions: false,
            logged_parameters: None,
            logs_statements: true,
        }
    }

    #[test]
    fn tokens_in_the_log_are_a_warning_and_what_public_has_is_a_note() {
        assert_eq!(shared_role(&role()), []);
        let logged = SharedRole { logged_parameters: Some("-1".into()), ..role() };
        let [finding] = &shared_role(&logged)[..] else { panic!("one finding") };
        assert_eq!(finding.level, Level::Warning);
        let remedy = finding.remedy.as_deref().unwrap();
        assert!(remedy.contains("alter role gatepost_pool set log_parameter_max_length = 0"));
        let unlogged = SharedRole { logs_statements: false, ..logged };
        assert_eq!(shared_role(&unlogged)[0].level, Level::Note);
        let public = SharedRole { makes_temporary_tables: true, ends_sessions: true, ..role() };
        let [finding] = &shared_role(&public)[..] else { panic!("one finding") };
        assert_eq!(finding.level, Level::Note);
        assert!(finding.text.ends_with("create temporary tables and end each other's sessions"));
        assert!(finding.remedy.as_deref().unwrap().contains("temporary on database vpn"));
    }
}
