-- Differences between existing tables of schema public and those of gatepost_wanted, one line each.
-- Additional columns and stricter constraints are accepted, except in tables that Gatepost inserts into.
-- Once Gatepost is there, the tables are altered by migrations of the control plane, and no such column keeps Gatepost
-- from being repaired or upgraded: agents name what they cannot read.
select pg_catalog.format('%s.%s %s', wanted.relation, wanted.name, case
    when found.name is null then 'is missing (' || wanted.type || ')'
    when found.type <> wanted.type then 'is ' || found.type || ', not ' || wanted.type
    else 'may be null' end)
from (
    select c.relname as relation, a.attname as name, a.attnum as number,
        format_type(a.atttypid, null) as type, a.attnotnull as required
    from pg_attribute a
    join pg_class c on c.oid = a.attrelid and c.relkind = 'r'
    where c.relnamespace = 'gatepost_wanted'::regnamespace and a.attnum > 0
) wanted
join pg_class there
    on there.relname = wanted.relation and there.relnamespace = 'public'::regnamespace
    and there.relkind in ('r', 'p', 'v', 'm', 'f')
left join (
    select a.attrelid, a.attname as name, format_type(a.atttypid, null) as type,
        a.attnotnull as required
    from pg_attribute a
    where a.attnum > 0 and not a.attisdropped
) found on found.attrelid = there.oid and found.name = wanted.name
where to_regclass('gatepost.schema_history') is null
    and (found.name is null or found.type <> wanted.type or (wanted.required and not found.required))
union all
select pg_catalog.format('%s.%s may not be null and has no default: gatepost has no value for it',
    c.relname, a.attname)
from pg_class c
join pg_attribute a on a.attrelid = c.oid
where to_regclass('gatepost.schema_history') is null
    and c.relnamespace = 'public'::regnamespace and c.relname = 'audit_logs'
    and a.attnum > 0 and not a.attisdropped and a.attnotnull
    and not a.atthasdef and a.attidentity = ''
    and not exists (
        select
        from pg_attribute w
        where w.attrelid = to_regclass('gatepost_wanted.' || c.relname) and w.attname = a.attname
    )
union all
-- Names like users are common: only a schema that holds wireguard_peers is a control plane's.
select pg_catalog.format('%s is in schema %s, but gatepost reads schema public: %srun `alter table %I.%I set schema '
    'public`', c.relname, n.nspname,
    case when here.is_empty then 'drop or rename the empty table public.' || c.relname || ', and ' end, n.nspname,
    c.relname)
from pg_class peers
join pg_namespace n on n.oid = peers.relnamespace
join pg_class c on c.relnamespace = n.oid and c.relkind in ('r', 'p', 'v', 'm', 'f')
join pg_class w on w.relname = c.relname and w.relnamespace = 'gatepost_wanted'::regnamespace
left join lateral (
    -- As a program leaves it that found no table in schema public, and made one.
    select not gatepost_wanted.has_rows(o.oid) and gatepost_wanted.has_rows(c.oid) as is_empty
    from pg_class o
    where o.relname = c.relname and o.relnamespace = 'public'::regnamespace and o.relkind in ('r', 'p')
        and c.relkind in ('r', 'p')
) here on true
where peers.relname = 'wireguard_peers' and peers.relkind in ('r', 'p', 'v', 'm', 'f')
    and n.nspname not in ('public', 'gatepost', 'gatepost_wanted') and n.nspname not like 'pg\_%'
    and (
        to_regclass('public.wireguard_peers') is null
        or case when peers.relkind in ('r', 'p') then
            not gatepost_wanted.has_rows(to_regclass('public.wireguard_peers'))
            and gatepost_wanted.has_rows(peers.oid)
            -- Once gateways are in schema public, the tables there are in use.
            and (
                to_regclass('gatepost.schema_history') is null
                or not gatepost_wanted.has_rows(to_regclass('public.gateways'))
            )
        end
    )
union all
select pg_catalog.format('%s has row-level security, which would hide rows from gatepost: make its '
    'role exempt, `create role gatepost_owner nologin bypassrls`, or alter it, and grant it to the '
    'role that migrates', c.relname)
from pg_class c
join pg_class w on w.relname = c.relname and w.relnamespace = 'gatepost_wanted'::regnamespace
where c.relnamespace = 'public'::regnamespace and c.relrowsecurity
    and c.relname not in ('roles', 'sessions', 'refresh_tokens') -- not read
    and not exists (
        select from pg_roles r where r.rolname = 'gatepost_owner' and r.rolbypassrls
    )
order by 1
