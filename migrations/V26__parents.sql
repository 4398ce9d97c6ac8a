-- Mends what writers, migrations, replicas and serializable transactions of the control plane could meet in Gatepost.

set role gatepost_owner;
set local search_path = pg_catalog, pg_temp;

comment on function gatepost.unwatched() is
    'Tables whose changes are not announced, all or some: a trigger is missing or off, rows arrive by logical replication, the table is a partition, a child or a parent of another, it was recreated without our rights, or marks cannot be written.';

do $migration$
declare
    edits constant text[] := array[
        -- Nor does a write to a parent fire the triggers of its partitions and children.
        [
            'join pg_inherits i on i.inhparent = to_regclass(''public.'' || w.relation)',
            'join pg_inherits i on to_regclass(''public.'' || w.relation) in (i.inhparent, i.inhrelid)'
        ],
        -- A transaction that once waited for the lock of a look-up looks nothing up again, and notifies all agents:
        -- the migration that has the lock may wait for the writer. Each wait is shorter than the server's search for
        -- deadlocks, but among many the search would find one.
        [
            '        begin
            perform gatepost.hint_all();
        exception when others then',
            '        begin
            perform set_config(''gatepost.busy'', ''on'', true);
        exception when others then
            null;
        end;
        begin
            perform gatepost.hint_all();
        exception when others then'
        ],
        [
            'current_setting(''transaction_isolation'') = ''serializable'' then
        perform pg_notify(''gatepost_all'', '''');',
            'current_setting(''transaction_isolation'') = ''serializable''
        or current_setting(''gatepost.busy'', true) = ''on''
    then
        perform pg_notify(''gatepost_all'', '''');'
        ],
        [
            'current_setting(''transaction_isolation'') <> ''serializable'' then
        begin',
            'current_setting(''transaction_isolation'') <> ''serializable''
        and current_setting(''gatepost.busy'', true) is distinct from ''on''
    then
        begin'
        ],
        -- A reader that is serializable could make serializable writers fail.
        [
            'begin
    if pg_is_in_recovery() then',
            'begin
    if current_setting(''transaction_isolation'') = ''serializable'' then
        raise exception using
            errcode = ''0A000'',
            message = ''a gateway''''s transaction must not be serializable'',
            hint = ''begin isolation level repeatable read'';
    elsif pg_is_in_recovery() then'
        ],
        -- A table that has a parent may change unannounced, and so may one that had it before.
        [
            'where c.oid = any (tables)
        ) a',
            'where c.oid = any (tables)
            union all
            select i.inhrelid, ''of '' || i.inhparent from pg_inherits i
            where i.inhrelid = any (tables)
        ) a'
        ],
        -- Who mistypes the gateway's name must not bind the role to another gateway.
        [
            'bound.gateway, name),
            hint = format(''run `gatepost grant %s %s`'', name, session_user);',
            'bound.gateway, name),
            hint = format(''correct gateway.name in the configuration, or, if the role is to serve gateway %s from ''
                ''now on, run `gatepost grant %s %s`'', name, name, session_user);'
        ]
    ];
    counts constant integer[] := array[1, 14, 2, 2, 2, 1, 1];
    edit text[];
    edited regprocedure;
    number integer := 0;
    found integer;
begin
    foreach edit slice 1 in array edits loop
        number := number + 1;
        found := 0;
        for edited in
            select p.oid::regprocedure from pg_proc p
            where p.pronamespace = 'gatepost'::regnamespace and position(edit[1] in p.prosrc) > 0
        loop
            execute replace(pg_get_functiondef(edited), edit[1], edit[2]);
            found := found + 1;
        end loop;
        if found <> counts[number] then
            raise exception 'found % functions with "%", not %', found, edit[1], counts[number];
        end if;
    end loop;
end $migration$;

revoke execute on all functions in schema gatepost from public;

-- A publication FOR ALL TABLES publishes deletions, too, and this table has no key by which a replica finds the row.
-- Writers wait for this lock: it is tried briefly, and the migration is tried again.
set local lock_timeout = '100ms';
alter table gatepost.change replica identity full;

reset role;
