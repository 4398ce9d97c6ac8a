-- A thousand gateways cost their database less: the answers that all agents need are worked out once, a heartbeat is
-- one statement, and a bell writes the times of all gateways together.

set role gatepost_owner;
set local search_path = pg_catalog, pg_temp;

-- The server.

-- Agents share sessions, so none can remember this. Unlogged: a server that crashes, and so may lose its last
-- transactions, starts with an empty table, and so does a standby that is promoted. It has no key: an open transaction
-- that inserted a row would make others wait.
create unlogged table gatepost.server (
    started timestamptz not null,
    database oid not null,
    identity text not null
);
comment on table gatepost.server is
    'What identifies this server since it started, which gatepost.history() would else work out for each question. Granted to no role.';

create function gatepost.identify_server() returns text
language plpgsql stable as $$
begin
    return concat_ws('/',
        (select c.system_identifier from pg_control_system() c),
        left(pg_walfile_name(pg_current_wal_insert_lsn()), 8),
        extract(epoch from coalesce(
            (select a.backend_start from pg_stat_activity a where a.backend_type = 'checkpointer'),
            pg_postmaster_start_time()
        )),
        (select d.oid from pg_database d where d.datname = current_database())
    );
end $$;
comment on function gatepost.identify_server() is
    'The cluster, its timeline, the last start or crash of the server, and the database.';

create function gatepost.known_server() returns text
language plpgsql volatile as $$
begin
    -- A standby cannot read an unlogged table.
    if pg_is_in_recovery() then
        return null;
    end if;
    return (
        select s.identity
        from gatepost.server s
        where s.started = pg_postmaster_start_time()
            -- A database that is created from another one gets its rows.
            and s.database = (select d.oid from pg_database d where d.datname = current_database())
        limit 1
    );
end $$;
comment on function gatepost.known_server() is
    'What identifies this server, if that was remembered since it started.';

create function gatepost.remember_server() returns void
language plpgsql as $$
begin
    if gatepost.known_server() is null then
        delete from gatepost.server s
        where s.ctid = any (array(select o.ctid from gatepost.server o for update skip locked));
        insert into gatepost.server (started, database, identity)
        select pg_postmaster_start_time(), d.oid, gatepost.identify_server()
        from pg_database d
        where d.datname = current_database();
    end if;
end $$;
comment on function gatepost.remember_server() is
    'Remembers what identifies the server. Waits for no other transaction.';

create or replace function gatepost.history() returns text
language plpgsql volatile as $$
begin
    return concat_ws('/', coalesce(gatepost.known_server(), gatepost.identify_server()),
        (select s.database_epoch from gatepost.state s), 'gatepost.state'::regclass::oid);
end $$;
comment on function gatepost.history() is
    'Changes whenever a snapshot of before may mean something else now: another cluster, a restored backup, a promoted standby, a server that lost its last transactions in a crash.';

-- What a function sets costs more than what most of these do. All are called by functions that have set it. The plans
-- of a function in SQL are made for each call.

create or replace function gatepost.has_bell() returns boolean
language plpgsql stable as $$
begin
    -- A clock that was set back delays nothing.
    return exists (
        select
        from gatepost.bell b
        where clock_timestamp() between b.heard_at and b.heard_at + interval '3 seconds'
    );
end $$;

create or replace function gatepost.has_merger() returns boolean
language plpgsql stable as $$
begin
    return gatepost.has_bell() and exists (
        select
        from gatepost.merger m
        where clock_timestamp() between m.at and m.at + interval '30 seconds'
    );
end $$;

alter function gatepost.me() security invoker reset all;
alter function gatepost.me(text) security invoker reset all;
-- With row-level security the row would seem to be missing.
alter function gatepost.has_gateway(uuid) security invoker reset all set row_security = off;
alter function gatepost.history() security invoker reset all;
alter function gatepost.marks_since(uuid, pg_snapshot) security invoker reset all set enable_bitmapscan = off;
alter function gatepost.waits(pg_snapshot) security invoker reset all;
alter function gatepost.has_news(uuid[], pg_snapshot) reset all set enable_bitmapscan = off;
alter function gatepost.has_unaddressed(pg_snapshot, pg_snapshot, pg_snapshot) reset all set enable_bitmapscan = off;

-- Reads.

-- The functions below ask once for whom they act, and each of these gets the answer.
do $migration$
declare
    original record;
    made text;
begin
    set local check_function_bodies = off;
    for original in
        select p.oid, p.proname as name, pg_get_functiondef(p.oid) as definition
        from unnest(array[
            'gatepost.epoch(text)', 'gatepost.unusable(text, pg_snapshot, text)', 'gatepost.policies_of(text, uuid[])',
            'gatepost.all_changes(text, text, text)', 'gatepost.changes_among(text, text, text, uuid[])'
        ]::regprocedure[]) o
        join pg_proc p on p.oid = o
    loop
        made := replace(original.definition, '(token text', '(me uuid');
        made := replace(made, 'gatepost.me($1)', 'me');
        made := replace(made, '    me constant uuid := me;
', '');
        made := replace(made, '($1, ', '(me, ');
        made := replace(made, '($1)', '(me)');
        if made like '%$1%' or made like '%token%' or made like '%gatepost.me(%' then
            raise exception 'gatepost.% is not as expected', original.name;
        end if;
        execute made;
    end loop;
end $migration$;
comment on function gatepost.epoch(uuid) is 'As gatepost.epoch(), for this gateway.';
comment on function gatepost.unusable(uuid, pg_snapshot, text) is 'As gatepost.unusable(pg_snapshot, text), for this gateway.';
comment on function gatepost.policies_of(uuid, uuid[]) is 'As gatepost.policies_of(uuid[]), for this gateway.';
comment on function gatepost.all_changes(uuid, text, text) is 'As gatepost.all_changes(text, text), for this gateway.';
comment on function gatepost.changes_among(uuid, text, text, uuid[]) is
    'As gatepost.changes_among(text, text, uuid[]), for this gateway.';
-- Their callers have set what they need.
alter function gatepost.epoch(uuid) security invoker reset all;
alter function gatepost.unusable(uuid, pg_snapshot, text) security invoker reset all;
alter function gatepost.policies_of(uuid, uuid[]) security invoker reset all;
alter function gatepost.all_changes(uuid, text, text) security invoker reset all;
alter function gatepost.changes_among(uuid, text, text, uuid[]) security invoker reset all;

create or replace function gatepost.changes_among(
    since text, since_epoch text, known uuid[],
    out cursor text, out epoch text, out taken_at timestamptz, out everything text,
    out devices uuid[], out users uuid[], out policies uuid[]
)
language plpgsql security definer set search_path = pg_catalog, pg_temp set row_security = off
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
begin
    select c.* into cursor, epoch, taken_at, everything, devices, users, policies
    from gatepost.changes_among(gatepost.me(), $1, $2, $3) c;
end $$;
create or replace function gatepost.changes_among(
    token text, since text, since_epoch text, known uuid[],
    out cursor text, out epoch text, out taken_at timestamptz, out everything text,
    out devices uuid[], out users uuid[], out policies uuid[]
)
language plpgsql security definer set search_path = pg_catalog, pg_temp set row_security = off
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
begin
    select c.* into cursor, epoch, taken_at, everything, devices, users, policies
    from gatepost.changes_among(gatepost.me($1), $2, $3, $4) c;
end $$;

do $migration$
declare
    edited regprocedure;
    made text;
begin
    foreach edited in array array['gatepost.news(text, text)', 'gatepost.news(text, text, text)']::regprocedure[] loop
        made := pg_get_functiondef(edited);
        made := replace(replace(made, 'unusable($1, behind,', 'unusable(behind,'), 'unusable(behind,', 'unusable(me, behind,');
        if made not like '%unusable(me, behind,%' then
            raise exception '% is not as expected', edited;
        end if;
        execute made;
    end loop;
end $migration$;

-- Their callers ask for a gateway now.
drop function gatepost.all_changes(text, text, text);
drop function gatepost.unusable(text, pg_snapshot, text);

-- Volatile: it compares what the transaction sees with what is true now.
create function gatepost.rewritten() returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
    return (
        select string_agg(c.relname, ', ')
        from pg_class c
        where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p')
            and c.relname in (
                'users', 'devices', 'wireguard_peers', 'gateways', 'ip_allocations', 'policies', 'policy_targets',
                'policy_destinations', 'groups', 'group_memberships', 'settings'
            )
            and (
                c.relfilenode <> coalesce(pg_relation_filenode(c.oid), 0)
                or c.oid::regclass::text is distinct from 'public.' || quote_ident(c.relname)
            )
    );
end $$;
comment on function gatepost.rewritten() is
    'Tables that were rewritten or replaced since the snapshot of this transaction, which sees them empty. To be asked last.';

-- Heartbeats.

-- Most gateways have one host.
do $migration$
declare
    present constant text :=
        pg_get_functiondef('gatepost.hear_of(uuid, text, text, text, timestamptz)'::regprocedure);
    after constant text := '    returning h.since into began;
';
begin
    if position(after in present) = 0 then
        raise exception 'gatepost.hear_of() is not as expected';
    end if;
    execute replace(present, after, after || '    if (select count(*) from gatepost.host h where h.gateway_id = gateway) = 1 then
        return;
    end if;
');
end $migration$;
alter function gatepost.hear_of(uuid, text, text, text, timestamptz) reset all;

create function gatepost.prove_of(
    me uuid, proven_at timestamptz, since_epoch text, machine text, boot text, host_name text,
    out taken boolean, out leader text, out others text[], out is_merged boolean, out refused text[],
    out refused_since timestamptz[]
)
language plpgsql as $$
#variable_conflict use_variable
begin
    -- What a crash takes back was true before, and is reported again.
    perform set_config('synchronous_commit', 'off', true);
    -- The read that is proven has compared the triggers. Nothing after it makes the proof untrue, but another server.
    taken := proven_at is not null and (
        since_epoch is null or starts_with(since_epoch, concat_ws('/', gatepost.history(), me, ''))
    );
    perform gatepost.hear_of(me, machine, boot, host_name, case when taken then proven_at end);
    others := array(
        select h.name || to_char(h.seen_at at time zone 'UTC', '", last heard of at "YYYY-MM-DD"T"HH24:MI:SS"Z"')
        from gatepost.host h
        where h.gateway_id = me
            and (h.machine, h.boot) <> (left(machine, 64), left(boot, 64))
        order by h.since, h.machine, h.boot
    );
    if cardinality(others) > 0 then
        select h.name into leader
        from (
            select a.name, a.machine, a.boot
            from gatepost.host a
            where a.gateway_id = me and a.seen_at > now() - gatepost.lease()
            order by a.since, a.machine, a.boot
            limit 1
        ) h
        where (h.machine, h.boot) <> (left(machine, 64), left(boot, 64));
    end if;
    is_merged := gatepost.has_merger();
    select coalesce(array_agg(r.why order by r.relation), '{}'), coalesce(array_agg(r.since order by r.relation), '{}')
    into refused, refused_since
    from gatepost.refused r
    where r.gateway_id = me;
end $$;
comment on function gatepost.prove_of(uuid, timestamptz, text, text, text, text) is
    'As gatepost.prove(), for this gateway.';

create function gatepost.prove(
    proven_at timestamptz, since_epoch text, machine text, boot text, host_name text,
    out taken boolean, out leader text, out others text[], out is_merged boolean, out refused text[],
    out refused_since timestamptz[]
)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
    select p.* into taken, leader, others, is_merged, refused, refused_since
    from gatepost.prove_of(gatepost.me(), $1, $2, $3, $4, $5) p;
end $$;
comment on function gatepost.prove(timestamptz, text, text, text, text) is
    'As gatepost.proven(). `is_merged`: a bell merges the reports. `refused`, `refused_since`: why reports wait, and since when.';
create function gatepost.prove(
    token text, proven_at timestamptz, since_epoch text, machine text, boot text, host_name text,
    out taken boolean, out leader text, out others text[], out is_merged boolean, out refused text[],
    out refused_since timestamptz[]
)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
    select p.* into taken, leader, others, is_merged, refused, refused_since
    from gatepost.prove_of(gatepost.me($1), $2, $3, $4, $5, $6) p;
end $$;
comment on function gatepost.prove(text, timestamptz, text, text, text, text) is
    'As gatepost.prove(timestamp with time zone,text,text,text,text), for the gateway of this token.';
comment on function gatepost.proven(timestamptz, text, text, text, text) is
    'For agents of the version before. Leaves with the next version.';

-- With row-level security the devices of handshakes would seem to be another gateway's.
alter function gatepost.report(uuid[], timestamptz[], timestamptz[]) set row_security = off;
alter function gatepost.report(text, uuid[], timestamptz[], timestamptz[]) set row_security = off;

-- Merging.

do $migration$
declare
    part constant text := pg_get_functiondef('gatepost.merge_part(uuid, text, text, text, uuid[])'::regprocedure);
    before constant text := '    select * into merged from gatepost.merge_rows(';
begin
    if position(before in part) = 0 then
        raise exception 'gatepost.merge_part() is not as expected';
    end if;
    execute replace(part, before, '    if cardinality(ids) = 0 then
        return;
    end if;
' || before);
end $migration$;

create function gatepost.merge_proofs(at_most integer) returns integer
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set row_security = off
set lock_timeout = '100ms' set jit = off as $$
declare
    ids uuid[];
begin
    -- What a crash takes back waits again.
    perform set_config('synchronous_commit', 'off', true);
    if not gatepost.may_write('update public.gateways set last_sync_at = now()') then
        return 0;
    end if;
    ids := array(
        select g.id
        from public.gateways g
        join (
            select h.gateway_id, min(h.proven_at) as at
            from gatepost.host h
            group by h.gateway_id
            having bool_and(h.proven_at is not null)
        ) proof on proof.gateway_id = g.id
        where (g.last_sync_at is null or g.last_sync_at < proof.at or g.last_sync_at > now())
            and not exists (select from gatepost.refused r where r.gateway_id = g.id and r.relation = 'gateways')
        order by g.id
        limit greatest(1, least(at_most, 1000))
        for no key update of g skip locked
    );
    return (
        select cardinality(m.taken)
        from gatepost.merge_rows('gateways', 'update public.gateways g set last_sync_at = proof.at
            from (
                select h.gateway_id, min(h.proven_at) as at
                from gatepost.host h
                where h.gateway_id = any ($1)
                group by h.gateway_id
            ) proof
            where g.id = any ($1) and g.id = proof.gateway_id', null, ids) m
    );
end $$;
comment on function gatepost.merge_proofs(integer) is
    'Writes last_sync_at of at most so many gateways, and says of how many. gatepost.merge_gateway() merges what is refused or locked, and all other reports. For the bell, to be called in a statement of its own.';

create function gatepost.merge_events(at_most integer) returns integer
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set row_security = off
set lock_timeout = '100ms' set jit = off as $$
declare
    ids uuid[];
    merged record;
begin
    -- What a crash takes back waits again.
    perform set_config('synchronous_commit', 'off', true);
    ids := array(
        select e.id
        from gatepost.event e
        where not exists (
            select from gatepost.refused r where r.gateway_id = e.gateway_id and r.relation = 'audit_logs'
        )
        order by e.at, e.id
        limit greatest(1, least(at_most, 1000))
        for update of e skip locked
    );
    if cardinality(ids) = 0 then
        return 0;
    end if;
    select * into merged from gatepost.merge_rows('audit_logs', $statement$
        insert into public.audit_logs (
            id, actor_device_id, event_type, entity_type, entity_id, status, ip_address, message,
            metadata, created_at
        )
        select e.id, (select d.id from public.devices d where d.id = e.device_id), e.event_type,
            e.entity_type, e.entity_id, e.status, e.ip_address, e.message, e.metadata, e.at
        from gatepost.event e
        where e.id = any ($1)
        order by e.at, e.id
        $statement$, null, ids);
    delete from gatepost.event e where e.id = any (merged.taken);
    return cardinality(merged.taken);
end $$;
comment on function gatepost.merge_events(integer) is
    'Writes at most so many audit entries of all gateways, and says how many. gatepost.merge_gateway() merges what is refused. For the bell, to be called in a statement of its own.';

-- What all agents ask each minute.

alter table gatepost.merger add unwatched text[], add triggers text, add unwatched_at timestamptz not null default '-infinity';

create function gatepost.look_for_unwatched() returns void
language sql volatile security definer set search_path = pg_catalog, pg_temp as $$
    update gatepost.merger m
    set triggers = gatepost.triggers_version(), unwatched = gatepost.unwatched(), unwatched_at = clock_timestamp()
    where clock_timestamp() not between m.unwatched_at and m.unwatched_at + interval '5 seconds'
$$;
comment on function gatepost.look_for_unwatched() is
    'Notes for gatepost.follow() which changes are not announced, at most every five seconds. For the bell.';

create function gatepost.known_unwatched() returns text[]
language plpgsql stable as $$
begin
    return coalesce(
        (
            select m.unwatched
            from gatepost.merger m
            where clock_timestamp() between m.unwatched_at and m.unwatched_at + interval '15 seconds'
                and m.triggers = gatepost.triggers_version()
        ),
        gatepost.unwatched()
    );
end $$;
comment on function gatepost.known_unwatched() is
    'As gatepost.unwatched(), or what a bell found a few seconds ago, if no trigger was altered since.';

create function gatepost.follow(listens boolean, out gateways bigint, out unwatched text[])
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
    gateways := gatepost.attach(listens);
    unwatched := gatepost.known_unwatched();
    perform gatepost.remember_server();
end $$;
comment on function gatepost.follow(boolean) is
    'As gatepost.attach() and gatepost.unwatched(). To be called when an agent connects, and each minute.';
create function gatepost.follow(token text, listens boolean, out gateways bigint, out unwatched text[])
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
    gateways := gatepost.attach($1, listens);
    unwatched := gatepost.known_unwatched();
    perform gatepost.remember_server();
end $$;
comment on function gatepost.follow(text, boolean) is 'As gatepost.follow(boolean), for the gateway of this token.';

revoke execute on all functions in schema gatepost from public;

reset role;
