-- The statements that take Gatepost out of this database, in order. They leave the tables of the control
-- plane as they are, and fail if something else depends on an object of Gatepost's. $1: the names of its
-- indexes in schema public, $2: of what its migrations make in schema gatepost.
with ours as (select to_regnamespace('gatepost') as schema),
roles as (
    select r.oid, r.rolname
    from pg_roles r
    where r.rolname in ('gatepost_owner', 'gatepost_gateway', 'gatepost_bell')
),
granted as (
    select distinct d.classid, d.objid, r.rolname
    from pg_shdepend d
    join roles r on r.oid = d.refobjid and d.refclassid = 'pg_authid'::regclass
    where d.deptype = 'a'
        and d.dbid = (select b.oid from pg_database b where b.datname = current_database())
),
statements (step, statement) as (
    -- `drop trigger` takes a weak lock on its table, then a strong one. The server ends a transaction that raises
    -- its own lock on the table in between. So each table is locked strongly first.
    select distinct 0, format('lock table %s in access exclusive mode', t.tgrelid::regclass)
    from ours o
    join pg_proc p on p.pronamespace = o.schema
    join pg_trigger t on t.tgfoid = p.oid and t.tgparentid = 0 and t.tgname like 'gatepost\_%'
    union all
    select 1, format('drop trigger %I on %s', t.tgname, t.tgrelid::regclass)
    from ours o
    join pg_proc p on p.pronamespace = o.schema
    join pg_trigger t on t.tgfoid = p.oid and t.tgparentid = 0 and t.tgname like 'gatepost\_%'
    union all
    select 2, format('drop index public.%I', c.relname)
    from pg_class c
    where c.relnamespace = 'public'::regnamespace and c.relkind in ('i', 'I')
        and c.relname = any ($1)
    union all
    select 3, 'drop view ' || string_agg(c.oid::regclass::text, ', ' order by c.relname)
    from ours o
    join pg_class c on c.relnamespace = o.schema and c.relkind = 'v' and c.relname = any ($2)
    having count(*) > 0
    union all
    select 4, 'drop function ' || string_agg(p.oid::regprocedure::text, ', ' order by p.oid::regprocedure::text)
    from ours o
    join pg_proc p on p.pronamespace = o.schema and p.proname = any ($2)
    having count(*) > 0
    union all
    select 5, 'drop table ' || string_agg(c.oid::regclass::text, ', ' order by c.relname)
    from ours o
    join pg_class c on c.relnamespace = o.schema and c.relkind = 'r' and c.relname = any ($2)
    having count(*) > 0
    union all
    select 6, 'drop type ' || string_agg(t.oid::regtype::text, ', ' order by t.typname)
    from ours o
    join pg_type t on t.typnamespace = o.schema and t.typname = any ($2)
    left join pg_class c on c.oid = t.typrelid
    where t.typtype = 'e' or c.relkind = 'c'
    having count(*) > 0
    union all
    select 7, 'drop schema gatepost' from ours o where o.schema is not null
    union all
    select 8, format('revoke all on %s %s from %I',
        case c.relkind when 'S' then 'sequence' else 'table' end, c.oid::regclass, g.rolname)
    from granted g
    join pg_class c on g.classid = 'pg_class'::regclass and c.oid = g.objid
    cross join ours o
    where c.relnamespace is distinct from o.schema
    union all
    select 8, format('revoke all on schema %I from %I', n.nspname, g.rolname)
    from granted g
    join pg_namespace n on g.classid = 'pg_namespace'::regclass and n.oid = g.objid
    cross join ours o
    where n.oid is distinct from o.schema
    union all
    -- Roles belong to the whole cluster: another database may use them.
    select 9, format('drop role %I', r.rolname)
    from roles r
    where not exists (
        select
        from pg_shdepend d
        where d.refclassid = 'pg_authid'::regclass and d.refobjid = r.oid
            and d.dbid <> (select b.oid from pg_database b where b.datname = current_database())
    )
)
select s.statement from statements s order by s.step, s.statement
