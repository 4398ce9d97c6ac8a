//! The functions that the schema promises, as a migrated database describes them.

#[path = "../support/surface.rs"]
mod golden;

use crate::world::World;

/// Functions of schema `gatepost` that are granted to somebody else than their owner or that the
/// reference describes, with arguments, result and the columns of the result's type.
const FUNCTIONS: &str = "
    select p.proname, pg_get_function_arguments(p.oid), pg_get_function_result(p.oid),
        coalesce(array(select g.rolname from aclexplode(p.proacl) a
            left join pg_roles g on g.oid = a.grantee
            where a.grantee <> p.proowner order by 1), '{}')::text[],
        array(select format('%s %s', a.attname, format_type(a.atttypid, a.atttypmod))
            from pg_type t join pg_attribute a on a.attrelid = t.typrelid
            where t.oid = p.prorettype and t.typrelid <> 0 and a.attnum > 0 and not a.attisdropped
            order by a.attnum)::text[]
    from pg_proc p where p.pronamespace = 'gatepost'::regnamespace order by 1, 2";

#[tokio::test]
async fn sql_functions_surface() {
    let reference = include_str!("../../docs/reference.md");
    let world = World::new().await;
    let mut lines = Vec::new();
    for row in world.admin.query(FUNCTIONS, &[]).await.unwrap() {
        let (name, arguments): (String, String) = (row.get(0), row.get(1));
        let (result, grantees): (String, Vec<Option<String>>) = (row.get(2), row.get(3));
        let columns: Vec<String> = row.get(4);
        if grantees.is_empty() && !reference.contains(&format!("`{name}(")) {
            continue;
        }
        let grantees = grantees.into_iter().map(|role| role.unwrap_or_else(|| "public".to_owned()));
        let grantees = grantees.collect::<Vec<_>>().join(", ");
        lines.push(format!("{name}({arguments})  for {grantees}"));
        lines.push(format!("  returns {result}"));
        lines.extend(columns.iter().map(|column| format!("    {column}")));
    }
    golden::check("sql functions", &lines);
}

/// Functions that only agents of the version before call, directly or not.
#[tokio::test]
async fn sql_functions_that_leave_surface() {
    let leaving = "select p.proname || '(' || pg_get_function_identity_arguments(p.oid) || ')'
        from pg_proc p where p.pronamespace = 'gatepost'::regnamespace
            and obj_description(p.oid, 'pg_proc') like '%Leaves with the next version.' order by 1";
    let world = World::new().await;
    let rows = world.admin.query(leaving, &[]).await.unwrap();
    let lines: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    golden::check("sql functions that leave", &lines);
}

/// What the functions write to `audit_logs` by themselves.
#[tokio::test]
async fn audit_events_of_sql_functions_surface() {
    let events = "select distinct found[1] from pg_proc p,
        regexp_matches(p.prosrc, '''((?:gateway|peer|policy)\\.[a-z_]+)''', 'g') found
        where p.pronamespace = 'gatepost'::regnamespace order by 1";
    let world = World::new().await;
    let rows = world.admin.query(events, &[]).await.unwrap();
    let lines: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    golden::check("audit events of sql functions", &lines);
}

/// The errors that `gatepost` and its users tell apart by their code.
#[test]
fn sqlstates_surface() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/migrations");
    let mut lines = std::collections::BTreeSet::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        let codes = text.split('\'').filter(|word| word.len() == 5 && word.starts_with("GP0"));
        lines.extend(codes.map(str::to_owned));
    }
    golden::check("sqlstates", &Vec::from_iter(lines));
}
