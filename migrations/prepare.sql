-- Runs before the migrations: creates the three roles and the schema, and lets the migrating role act as
-- the schema's owner. Safe to repeat, and next to another database's migration: roles belong to the
-- whole cluster.

set local search_path = pg_catalog, pg_temp;

do $$
declare
    wanted text;
begin
    foreach wanted in array array['gatepost_owner', 'gatepost_gateway', 'gatepost_bell'] loop
        if not exists (select from pg_roles where rolname = wanted) then
            begin
                execute format('create role %I nologin', wanted);
            exception when duplicate_object or unique_violation then
                null; -- created by another database's migration meanwhile
            end;
        end if;
        if exists (select from pg_roles where rolname = wanted and (rolcanlogin or rolsuper)) then
            raise exception using
                errcode = 'GP004',
                message = format('role %s exists and can log in or is a superuser', wanted),
                hint = format('alter role %I nologin nosuperuser', wanted);
        end if;
    end loop;
    -- Since version 16, the creator of a role is its member, but may neither act as it nor use its rights.
    begin
        if current_setting('server_version_num')::integer >= 160000 then
            if not (
                pg_has_role(current_user, 'gatepost_owner', 'set')
                and pg_has_role(current_user, 'gatepost_owner', 'usage')
            ) then
                execute format(
                    'grant gatepost_owner to %I with inherit true, set true', current_user
                );
            end if;
        elsif not pg_has_role(current_user, 'gatepost_owner', 'member') then
            execute format('grant gatepost_owner to %I', current_user);
        end if;
    exception when insufficient_privilege then
        raise exception using
            errcode = 'GP004',
            message = format('role gatepost_owner belongs to another administrator of this server, and %I may '
                'not act as it', current_user),
            hint = format('as that administrator, run `grant gatepost_owner, gatepost_gateway, gatepost_bell to %I '
                'with admin option`', current_user);
    end;
    -- For the start time of the checkpointer in gatepost.history(). Some providers do not allow it.
    if not pg_has_role('gatepost_owner', 'pg_read_all_stats', 'member') then
        begin
            grant pg_read_all_stats to gatepost_owner;
        exception when insufficient_privilege or unique_violation or internal_error then
            null;
        end;
    end if;
end $$;

create schema if not exists gatepost authorization gatepost_owner;

-- A dump that was restored without owners leaves everything to the role that restored it.
do $$
declare
    object text;
begin
    for object in
        select 'schema gatepost'
        where to_regnamespace('gatepost') in (
            select n.oid from pg_namespace n where n.nspowner <> to_regrole('gatepost_owner')
        )
        union all
        select case c.relkind when 'v' then 'view ' else 'table ' end || c.oid::regclass
        from pg_class c
        where c.relnamespace = to_regnamespace('gatepost') and c.relkind in ('r', 'v')
            and c.relname <> 'schema_history' and c.relowner <> to_regrole('gatepost_owner')
        union all
        select 'function ' || p.oid::regprocedure
        from pg_proc p
        where p.pronamespace = to_regnamespace('gatepost')
            and p.proowner <> to_regrole('gatepost_owner')
        union all
        select 'type ' || t.oid::regtype
        from pg_type t
        left join pg_class c on c.oid = t.typrelid
        where t.typnamespace = to_regnamespace('gatepost') and (t.typtype = 'e' or c.relkind = 'c')
            and t.typowner <> to_regrole('gatepost_owner')
    loop
        execute format('alter %s owner to gatepost_owner', object);
    end loop;
end $$
