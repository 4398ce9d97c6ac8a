-- What the migrations did not make, in schema gatepost or depending on something in it. $1: the names of
-- what they make.
with inside as (
    select d.classid, d.objid,
        coalesce(
            (select c.relname from pg_class c where d.classid = 'pg_class'::regclass and c.oid = d.objid),
            (select p.proname from pg_proc p where d.classid = 'pg_proc'::regclass and p.oid = d.objid),
            (select t.typname from pg_type t where d.classid = 'pg_type'::regclass and t.oid = d.objid)
        ) as name,
        -- A sequence of a column goes with its table.
        exists (
            select
            from pg_depend o
            where o.classid = d.classid and o.objid = d.objid and o.refclassid = 'pg_class'::regclass
                and o.deptype in ('a', 'i')
        ) as is_part
    from pg_depend d
    where d.refclassid = 'pg_namespace'::regclass and d.refobjid = to_regnamespace('gatepost')
        and d.deptype = 'n'
),
-- With the types of the rows of tables, and of arrays.
used as (
    select i.classid, i.objid from inside i
    union
    select 'pg_type'::regclass, t.oid
    from pg_type t
    where t.typnamespace = to_regnamespace('gatepost')
),
users as (
    select distinct on (d.classid, d.objid) d.classid, d.objid,
        -- What a rule, a default, a constraint or an index belongs to.
        coalesce(r.ev_class, a.adrelid, nullif(k.conrelid, 0), x.indrelid, d.objid) as owner,
        coalesce(t.tgname like 'gatepost\_%' or t.tgisinternal, false) as is_ours,
        r.ev_class
    from used u
    join pg_depend d on d.refclassid = u.classid and d.refobjid = u.objid and d.deptype = 'n'
    left join pg_rewrite r on d.classid = 'pg_rewrite'::regclass and r.oid = d.objid
    left join pg_attrdef a on d.classid = 'pg_attrdef'::regclass and a.oid = d.objid
    left join pg_constraint k on d.classid = 'pg_constraint'::regclass and k.oid = d.objid
    left join pg_index x on d.classid = 'pg_class'::regclass and x.indexrelid = d.objid
    left join pg_trigger t on d.classid = 'pg_trigger'::regclass and t.oid = d.objid
)
select pg_describe_object(i.classid, i.objid, 0) as object
from inside i
where not i.is_part and (i.name = any ($1)) is not true
union
select case
    when u.ev_class is null then pg_describe_object(u.classid, u.objid, 0)
    else pg_describe_object('pg_class'::regclass, u.ev_class, 0)
end
from users u
where not u.is_ours and u.owner not in (select o.objid from used o)
order by 1
