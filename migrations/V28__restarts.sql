-- A server that was shut down in order and started again has lost nothing: the cursors of before go on, and no
-- gateway reads everything.

set role gatepost_owner;
set local search_path = pg_catalog, pg_temp;

-- The table is empty after a crash, a promotion and a restored backup. A row of an earlier start that is still there
-- proves that the server was shut down in order ever since, on these files. A copy of the files, made while the server
-- was down, knows the starts before the copy was made, and no later one.
alter table gatepost.server add predecessors text[] not null default '{}';
comment on column gatepost.server.predecessors is
    'The identities of the last starts before this one, each of which ended with an orderly shutdown: all that was committed then is here.';

-- One statement, because others may do the same at this moment: each sees either the rows of before or that of this start.
create or replace function gatepost.remember_server() returns void
language plpgsql as $$
declare
    start constant timestamptz := pg_postmaster_start_time();
    this_database oid;
begin
    if gatepost.known_server() is not null then
        return;
    end if;
    select d.oid into this_database from pg_database d where d.datname = current_database();
    with present as (
        select gatepost.identify_server() as identity
    ), earlier as (
        select s.identity, s.predecessors
        from gatepost.server s, present p
        where s.database = this_database
            and s.started <> start
            and gatepost.is_of_cluster(s.identity, p.identity)
        order by s.started desc
        limit 1
    )
    insert into gatepost.server (started, database, identity, predecessors)
    select start, this_database, p.identity, case when e.identity is null then '{}' else (e.identity || e.predecessors)[:8] end
    from present p
    left join earlier e on true
    where not exists (
        select from gatepost.server s where s.started = start and s.database = this_database
    );
    delete from gatepost.server s
    where s.ctid = any (array(
        select o.ctid
        from gatepost.server o
        where (o.started, o.database) <> (start, this_database)
        for update skip locked
    ));
end $$;

create function gatepost.is_of_cluster(identity text, other text) returns boolean
language sql immutable as $$
    select split_part($1, '/', 1) = split_part($2, '/', 1) and split_part($1, '/', 2) = split_part($2, '/', 2)
$$;
comment on function gatepost.is_of_cluster(text, text) is
    'Whether these identities or histories are of one cluster and timeline.';

create function gatepost.history_of(identity text) returns text
language plpgsql stable as $$
begin
    return concat_ws('/', identity, (select s.database_epoch from gatepost.state s), 'gatepost.state'::regclass::oid);
end $$;
comment on function gatepost.history_of(text) is 'What gatepost.history() says on a server of this identity.';

create or replace function gatepost.history() returns text
language plpgsql volatile as $$
begin
    return gatepost.history_of(coalesce(gatepost.known_server(), gatepost.identify_server()));
end $$;

create function gatepost.continued(since_epoch text) returns text
language plpgsql volatile as $$
declare
    present constant text := gatepost.history();
begin
    -- A standby cannot read an unlogged table.
    if starts_with(since_epoch, present || '/') or pg_is_in_recovery() then
        return since_epoch;
    end if;
    return coalesce(
        (
            select present || substr(since_epoch, length(former.history) + 1)
            from gatepost.server s
            cross join unnest(s.identity || s.predecessors) i (identity)
            cross join lateral (select gatepost.history_of(i.identity) as history) former
            where s.database = (select d.oid from pg_database d where d.datname = current_database())
                and gatepost.is_of_cluster(i.identity, present)
                and starts_with(since_epoch, former.history || '/')
            limit 1
        ),
        since_epoch
    );
end $$;
comment on function gatepost.continued(text) is
    'This epoch as of the present start of the server, if nothing was lost since; else the epoch itself.';

do $migration$
declare
    present constant text := pg_get_functiondef('gatepost.all_changes(uuid, text, text)'::regprocedure);
    after constant text := '    everything := gatepost.unusable(me, seen, since_epoch);
';
    made text;
begin
    -- Most cursors are of this start.
    made := replace(present, after, after || '    if everything is not null then
        epoch := gatepost.continued(since_epoch);
        if epoch <> since_epoch then
            everything := gatepost.unusable(me, seen, epoch);
        end if;
    end if;
');
    if made = present then
        raise exception 'gatepost.all_changes() is not as expected';
    end if;
    execute made;
end $migration$;

-- What was withdrawn since the cursor, in both forms of the function.
do $migration$
declare
    edited regprocedure;
    made text;
begin
    foreach edited in array array['gatepost.marks(text, text)', 'gatepost.marks(text, text, text)']::regprocedure[] loop
        made := regexp_replace(
            pg_get_functiondef(edited), 'case when since_epoch = (gatepost\.epoch\(.*?\)) then',
            'case when since_epoch = \1 or gatepost.continued(since_epoch) = \1 then'
        );
        if made not like '%continued(since_epoch)%' then
            raise exception '% is not as expected', edited;
        end if;
        execute made;
    end loop;
end $migration$;

revoke execute on all functions in schema gatepost from public;

reset role;
