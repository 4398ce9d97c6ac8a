-- Makes objects of schema gatepost again that were lost, from schema gatepost_wanted, which the
-- migrations have just filled. What is there is left as it is.

set local check_function_bodies = off;
set local role gatepost_owner;
set local search_path = pg_catalog, pg_temp;

do $$
declare
    lost record;
    wrong record;
begin
    for lost in
        select t.typname as name
        from pg_type t
        left join pg_class c on c.oid = t.typrelid
        where t.typnamespace = 'gatepost_wanted'::regnamespace
            and (t.typtype = 'e' or c.relkind = 'c')
            and to_regtype(format('gatepost.%I', t.typname)) is null
    loop
        execute format('alter type gatepost_wanted.%I set schema gatepost', lost.name);
    end loop;

    for lost in
        select c.oid, c.relname as name
        from pg_class c
        where c.relnamespace = 'gatepost_wanted'::regnamespace and c.relkind = 'r'
            and to_regclass(format('gatepost.%I', c.relname)) is null
    loop
        for wrong in
            select a.attname as name, t.typname as type
            from pg_attribute a
            join pg_type t on t.oid = a.atttypid
            where a.attrelid = lost.oid and t.typnamespace = 'gatepost_wanted'::regnamespace
        loop
            execute format('alter table gatepost_wanted.%I alter %I type gatepost.%I using %I::text::gatepost.%I',
                lost.name, wrong.name, wrong.type, wrong.name, wrong.type);
        end loop;
        execute format('alter table gatepost_wanted.%I set schema gatepost', lost.name);
    end loop;
    if found then
        -- Marks may be lost: no agent may follow an earlier cursor.
        update gatepost.state set database_epoch = gen_random_uuid();
    end if;

    for lost in
        select c.relname as name,
            replace(pg_get_viewdef(c.oid), 'gatepost_wanted.', 'gatepost.') as body
        from pg_class c
        where c.relnamespace = 'gatepost_wanted'::regnamespace and c.relkind = 'v'
            and to_regclass(format('gatepost.%I', c.relname)) is null
        order by c.oid
    loop
        execute format('create view gatepost.%I as %s', lost.name, lost.body);
    end loop;

    for lost in
        select replace(pg_get_functiondef(p.oid), 'gatepost_wanted.', 'gatepost.') as definition
        from pg_proc p
        where p.pronamespace = 'gatepost_wanted'::regnamespace
            and replace(p.oid::regprocedure::text, 'gatepost_wanted.', 'gatepost.') not in (
                select f.oid::regprocedure::text
                from pg_proc f
                where f.pronamespace = 'gatepost'::regnamespace
            )
    loop
        execute lost.definition;
    end loop;
end $$;

drop schema gatepost_wanted cascade;
reset role
