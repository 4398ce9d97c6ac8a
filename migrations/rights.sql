-- Owners and rights that differ from what gatepost needs, one line each. Any role may read these
-- catalogs, so agents run this query as well as `gatepost migrate`. It resolves no name in schema
-- gatepost, which needs a right that may be missing.
with ours as (
    select 'pg_catalog.pg_proc'::pg_catalog.regclass as catalog, p.oid, 'function ' || p.oid::pg_catalog.regprocedure as name,
        p.proowner as owner, p.proacl as acl, pg_catalog.acldefault('f', p.proowner) as default_acl
    from pg_catalog.pg_proc p
    where p.pronamespace = pg_catalog.to_regnamespace('gatepost')
    union all
    select 'pg_catalog.pg_class'::pg_catalog.regclass, c.oid,
        case c.relkind when 'v' then 'view ' else 'table ' end || c.oid::pg_catalog.regclass,
        c.relowner, c.relacl, pg_catalog.acldefault('r', c.relowner)
    from pg_catalog.pg_class c
    where c.relnamespace = pg_catalog.to_regnamespace('gatepost') and c.relkind in ('r', 'v')
        and c.relname <> 'schema_history'
    union all
    select 'pg_catalog.pg_type'::pg_catalog.regclass, t.oid, 'type ' || t.oid::pg_catalog.regtype, t.typowner, null, null
    from pg_catalog.pg_type t
    left join pg_catalog.pg_class c on c.oid = t.typrelid
    where t.typnamespace = pg_catalog.to_regnamespace('gatepost')
        and (t.typtype = 'e' or c.relkind = 'c')
    union all
    select 'pg_catalog.pg_namespace'::pg_catalog.regclass, n.oid, 'schema gatepost', n.nspowner, n.nspacl,
        pg_catalog.acldefault('n', n.nspowner)
    from pg_catalog.pg_namespace n
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
        ('words(uuid[],uuid[])'),
        ('devices_by_id(uuid[])'),
        ('policies_by_device(uuid[])'),
        ('prove(timestamp with time zone,text,text,text,text)'),
        ('follow(boolean)'),
        ('rewritten()')
    ) g (name)
    cross join lateral (values (g.name), (pg_catalog.replace(pg_catalog.replace(g.name, '(', '(text,'), ',)', ')'))) f (name)
    union all
    select b.name, 'gatepost_bell' from (values
        ('hold_bell(text)'),
        ('leave_bell(text)'),
        ('ring(text)'),
        ('bells()'),
        ('unmerged()'),
        ('merge_gateway(uuid)'),
        ('merge_gateway(uuid,integer)'),
        ('merge_proofs(integer)'),
        ('merge_events(integer)'),
        ('look_for_unwatched()')
    ) b (name)
)
select pg_catalog.format('role %s does not exist', r)
from pg_catalog.unnest(array['gatepost_owner', 'gatepost_gateway', 'gatepost_bell']) r
where pg_catalog.to_regrole(r) is null
    -- Schema 12 has no bell.
    and (r <> 'gatepost_bell' or exists (select from ours o where o.name = 'table gatepost.bell'))
union all
select pg_catalog.format('%s belongs to %s instead of gatepost_owner', o.name, pg_catalog.pg_get_userbyid(o.owner))
from ours o
where pg_catalog.pg_get_userbyid(o.owner) <> 'gatepost_owner'
union all
select distinct pg_catalog.format('%s is open to PUBLIC', o.name)
from ours o
cross join lateral pg_catalog.aclexplode(coalesce(o.acl, o.default_acl)) a
where a.grantee = 0
union all
select pg_catalog.format('gatepost_owner may not use %s', o.name)
from ours o
cross join pg_catalog.unnest(array['select', 'insert', 'update', 'delete']) needed
where o.catalog = 'pg_catalog.pg_class'::pg_catalog.regclass and pg_catalog.to_regrole('gatepost_owner') is not null
group by o.name, o.oid
having not pg_catalog.bool_and(pg_catalog.has_table_privilege(pg_catalog.to_regrole('gatepost_owner'), o.oid, needed))
union all
select pg_catalog.format('%s may not use schema gatepost', r)
from pg_catalog.unnest(array['gatepost_gateway', 'gatepost_bell']) r
where pg_catalog.to_regrole(r) is not null and pg_catalog.to_regnamespace('gatepost') is not null
    and not pg_catalog.has_schema_privilege(pg_catalog.to_regrole(r), pg_catalog.to_regnamespace('gatepost'), 'usage')
    and (r <> 'gatepost_bell' or exists (select from ours o where o.name = 'table gatepost.bell'))
union all
select pg_catalog.format('%s may not call %s', f.caller, o.name)
from functions f
join ours o on o.name = 'function gatepost.' || f.name
where pg_catalog.to_regrole(f.caller) is not null
    and not pg_catalog.has_function_privilege(pg_catalog.to_regrole(f.caller), o.oid, 'execute')
order by 1
