-- Objects that schema gatepost has lost, one line each, and columns of its tables. Compares it with
-- schema gatepost_wanted.
select 'type gatepost.' || quote_ident(t.typname) as object, true as is_repairable
from pg_type t
left join pg_class c on c.oid = t.typrelid
where t.typnamespace = 'gatepost_wanted'::regnamespace and (t.typtype = 'e' or c.relkind = 'c')
    and to_regtype(format('gatepost.%I', t.typname)) is null
union all
select case c.relkind when 'v' then 'view' else 'table' end || ' gatepost.' || quote_ident(c.relname), true
from pg_class c
where c.relnamespace = 'gatepost_wanted'::regnamespace and c.relkind in ('r', 'v')
    and to_regclass(format('gatepost.%I', c.relname)) is null
union all
select 'function ' || s.signature, true
from pg_proc p
cross join lateral replace(p.oid::regprocedure::text, 'gatepost_wanted.', 'gatepost.') s (signature)
where p.pronamespace = 'gatepost_wanted'::regnamespace
    and s.signature not in (
        select f.oid::regprocedure::text from pg_proc f where f.pronamespace = 'gatepost'::regnamespace
    )
union all
select format('column %s of gatepost.%s is missing or has another type: run `drop table gatepost.%I cascade`, '
    'then `gatepost migrate` again', a.attname, c.relname, c.relname), false
from pg_class c
join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
where c.relnamespace = 'gatepost_wanted'::regnamespace and c.relkind = 'r'
    and c.relname <> 'schema_history' and to_regclass(format('gatepost.%I', c.relname)) is not null
    and not exists (
        select
        from pg_attribute f
        where f.attrelid = to_regclass(format('gatepost.%I', c.relname)) and f.attname = a.attname
            and not f.attisdropped
            and format_type(f.atttypid, f.atttypmod)
                = replace(format_type(a.atttypid, a.atttypmod), 'gatepost_wanted.', 'gatepost.')
    )
order by 1
