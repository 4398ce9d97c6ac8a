-- Owners and rights that differ from what gatepost needs, one line each. Any role may read these
-- catalogs, so agents run this query as well as `gatepost migrate`. It resolves no name in schema
-- gatepost, which needs a right that may be missing.
with ours as (
    select 'pg_proc'::regclass as catalog, p.oid, 'function ' || p.oid::regprocedure as name,
        p.proowner as owner, p.proacl as acl, acldefault('f', p.proowner) as default_acl
    from pg_proc p
    where p.pronamespace = to_regnamespace('gatepost')
    union all
    select 'pg_class'::regclass, c.oid,
        case c.relkind when 'v' then 'view ' else 'table ' end || c.oid::regclass,
        c.relowner, c.relacl, acldefault('r', c.relowner)
    from pg_class c
    where c.relnamespace = to_regnamespace('gatepost') and c.relkind in ('r', 'v')
        and c.relname <> 'schema_history'
    union all
    select 'pg_type'::regclass, t.oid, 'type ' || t.oid::regtype, t.typowner, null, null
    from pg_type t
    left join pg_class c on c.oid = t.typrelid
    where t.typnamespace = to_regnamespace('gatepost')
        and (t.typtype = 'e' or c.relkind = 'c')
    union all
    select 'pg_namespace'::regclass, n.oid, 'schema gatepost', n.nspowner, n.nspacl,
        acldefault('n', n.nspowner)
    from pg_namespace n
    where n.nspname = 'gatepost'
),
functions (name, caller) as (
    -- With a token, too, as far as that exists.
    select f.name, 'gatepost_gateway' from (values
        ('hello()'),
        ('snapshot_gateway()'),
        ('snapshot_settings()'),
        ('snapshot_peers()'),
        ('snapshot_memberships()'),
        ('snapshot_policies()'),
        ('attach(boolean)'),
        ('poll(text,text)'),
        ('changes(text,text)'),
        ('peers_by_device(uuid[])'),
        ('memberships_by_user(uuid[])'),
        ('policies_by_id(uuid[])'),
        ('report(uuid[],timestamp with time zone[],timestamp with time zone[])'),
        ('synced(timestamp with time zone,text)'),
        ('audit(jsonb)'),
        ('enroll(text,text,text,integer,cidr,text[],boolean)'),
        ('prune(interval)'),
        ('unwatched()'),
        ('misfits()'),
        ('marks(text,text)'),
        ('lost_marks(text[],text[],uuid[],uuid[],uuid[],timestamp with time zone[])'),
        ('merge()'),
        ('try_reports()'),
        ('changes_among(text,text,uuid[])'),
        ('proven(timestamp with time zone,text,text,text,text)'),
        ('hosts()'),
        ('forget_host(text,text)'),
        ('news(text,text)'),
        ('words(uuid[],uuid[])')
    ) g (name)
    cross join lateral (values (g.name), (replace(replace(g.name, '(', '(text,'), ',)', ')'))) f (name)
    union all
    select b.name, 'gatepost_bell' from (values
        ('hold_bell(text)'),
        ('leave_bell(text)'),
        ('ring(text)'),
        ('bells()'),
        ('unmerged()'),
        ('merge_gateway(uuid)')
    ) b (name)
)
select format('role %s does not exist', r)
from unnest(array['gatepost_owner', 'gatepost_gateway', 'gatepost_bell']) r
where to_regrole(r) is null
    -- Schema 12 has no bell.
    and (r <> 'gatepost_bell' or exists (select from ours o where o.name = 'table gatepost.bell'))
union all
select format('%s belongs to %s instead of gatepost_owner', o.name, pg_get_userbyid(o.owner))
from ours o
where pg_get_userbyid(o.owner) <> 'gatepost_owner'
union all
select distinct format('%s is open to PUBLIC', o.name)
from ours o
cross join lateral aclexplode(coalesce(o.acl, o.default_acl)) a
where a.grantee = 0
union all
select format('gatepost_owner may not use %s', o.name)
from ours o
cross join unnest(array['select', 'insert', 'update', 'delete']) needed
where o.catalog = 'pg_class'::regclass and to_regrole('gatepost_owner') is not null
group by o.name, o.oid
having not bool_and(has_table_privilege(to_regrole('gatepost_owner'), o.oid, needed))
union all
select format('%s may not use schema gatepost', r)
from unnest(array['gatepost_gateway', 'gatepost_bell']) r
where to_regrole(r) is not null and to_regnamespace('gatepost') is not null
    and not has_schema_privilege(to_regrole(r), to_regnamespace('gatepost'), 'usage')
    and (r <> 'gatepost_bell' or exists (select from ours o where o.name = 'table gatepost.bell'))
union all
select format('%s may not call %s', f.caller, o.name)
from functions f
join ours o on o.name = 'function gatepost.' || f.name
where to_regrole(f.caller) is not null
    and not has_function_privilege(to_regrole(f.caller), o.oid, 'execute')
order by 1
