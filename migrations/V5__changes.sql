-- From a cursor to what must be read again. A cursor is the pg_snapshot of the last read: every
-- mark whose transaction that snapshot did not see is new, whatever the order of commits.

set role gatepost_owner;
set local search_path = pg_catalog, pg_temp;

-- Why a cursor cannot be followed; null: it can.
create function gatepost.unusable(seen pg_snapshot, since_epoch text) returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
    if gatepost.epoch() <> since_epoch then
        return 'the cursor is of another epoch';
    elsif pg_snapshot_xmax(seen) > pg_snapshot_xmax(pg_current_snapshot()) then
        return 'the cursor is ahead of the server';
    elsif (
        select pg_snapshot_xmin(seen) < s.floor
            and s.floor <= pg_snapshot_xmax(pg_current_snapshot()) -- else it came with a backup
        from gatepost.state s
    ) then
        return 'the marks since the cursor are pruned';
    end if;
    return null;
end $$;

-- Marks that `seen` did not see, at most some more than 5,000: those for the gateway and for all, and
-- of those for nobody the ones that gatepost.address() did not address. One that is ahead of the
-- server came with a backup.
create function gatepost.marks_since(me uuid, seen pg_snapshot) returns gatepost.change[]
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
declare
    behind xid8 := pg_snapshot_xmin(seen);
    ahead constant xid8 := pg_snapshot_xmax(pg_current_snapshot());
    marks gatepost.change[];
    last gatepost.addressed;
begin
    marks := array(
        select c
        from gatepost.change c
        where c.gateway_id in (me, gatepost.everyone()) and c.xid >= behind and c.xid < ahead
            and not pg_visible_in_snapshot(c.xid, seen)
        limit 5001
    );
    select * into last from gatepost.addressed a where a.history = gatepost.history();
    if pg_snapshot_xmax(last.since) <= behind then
        behind := greatest(behind, pg_snapshot_xmin(last.seen));
    end if;
    return marks || array(
        select c
        from gatepost.change c
        where c.gateway_id = gatepost.nobody() and c.xid >= behind and c.xid < ahead
            and not pg_visible_in_snapshot(c.xid, seen)
            and (
                last.seen is null
                or pg_visible_in_snapshot(c.xid, last.since)
                or not pg_visible_in_snapshot(c.xid, last.seen)
            )
        limit 5001
    );
end $$;

-- The users and policies to read again, from what marks list of either.
create function gatepost.followed(
    me uuid,
    marks gatepost.change[],
    moved uuid[],
    owners uuid[],
    members uuid[],
    altered_groups uuid[],
    targets uuid[],
    altered_policies uuid[],
    out users uuid[],
    out policies uuid[]
)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set row_security = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set jit = off as $$
begin
    owners := array(
        select i from unnest(owners) i
        union
        select d.user_id from public.devices d where d.id = any (moved)
    );
    members := array(
        select i from unnest(members) i
        union
        select g.user_id from public.group_memberships g where g.group_id = any (altered_groups)
        except
        select i from unnest(owners) i
    );
    users := owners || array(
        select distinct d.user_id
        from public.devices d
        join public.wireguard_peers p on p.device_id = d.id
        where d.user_id = any (members) and p.gateway_id = me and p.deleted_at is null
    );
    targets := moved || owners || altered_groups || targets || array(
        select g.group_id from public.group_memberships g where g.user_id = any (owners)
        union
        select g
        from unnest(marks) m, unnest(m.group_ids) g
        where m.kind = 'membership' and m.ids && users
    );
    policies := array(
        select i from unnest(altered_policies) i
        union
        select t.policy_id
        from public.policy_targets t
        join public.policies p on p.id = t.policy_id
        where t.target_id = any (targets) and p.is_active and p.deleted_at is null
    );
end $$;

-- One row. `everything` says why only a full read will do; else the three lists name what to read
-- again in this same transaction. Three empty lists: nothing changed.
create function gatepost.changes(
    since text,
    since_epoch text,
    out cursor text,
    out epoch text,
    out taken_at timestamptz,
    out everything text,
    out devices uuid[],
    out users uuid[],
    out policies uuid[]
)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
set row_security = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set jit = off as $$
declare
    me constant uuid := gatepost.me();
    seen constant pg_snapshot := since::pg_snapshot;
    marks gatepost.change[];
    moved uuid[]; -- devices whose peers here came, went or moved
    altered uuid[]; -- devices whose peers, if they are here, read otherwise
    altered_users uuid[]; -- users whose peers, if they are here, read otherwise
    owners uuid[]; -- users who may own a peer here only now, or no longer
    members uuid[]; -- users who, if they own a peer here, are in other groups now
    altered_groups uuid[]; -- deleted or restored
    targets uuid[]; -- what policies may name and match otherwise now
    addresses text[]; -- allocated otherwise
begin
    cursor := pg_current_snapshot()::text;
    epoch := gatepost.epoch();
    taken_at := now();
    devices := '{}';
    users := '{}';
    policies := '{}';
    everything := gatepost.unusable(seen, since_epoch);
    if everything is not null then
        return;
    end if;

    marks := gatepost.marks_since(me, seen);
    if cardinality(marks) = 0 then
        return;
    end if;
    if cardinality(marks) > 5000 then
        everything := 'more than 5000 marks';
        return;
    end if;
    select case m.kind
            when 'all' then 'a table was truncated or made anew'
            when 'gateway' then 'the gateway''s row changed'
            when 'setting' then 'a setting changed'
            else 'more than 1000 rows changed in one statement (' || m.kind || ')'
        end
    into everything
    from unnest(marks) m
    where m.kind in ('all', 'gateway', 'setting') or (m.ids is null and m.addresses is null)
    limit 1;
    if everything is not null then
        return;
    end if;

    select
        coalesce(array_agg(distinct i) filter (where m.kind = 'peer'), '{}'),
        coalesce(array_agg(distinct i) filter (where m.kind = 'device'), '{}'),
        coalesce(array_agg(distinct i) filter (where m.kind = 'user'), '{}'),
        coalesce(array_agg(distinct i) filter (where m.kind = 'owner'), '{}'),
        coalesce(array_agg(distinct i) filter (where m.kind = 'membership'), '{}'),
        coalesce(array_agg(distinct i) filter (where m.kind = 'group'), '{}'),
        coalesce(array_agg(distinct i) filter (where m.kind = 'target'), '{}'),
        coalesce(array_agg(distinct i) filter (where m.kind = 'policy'), '{}')
    into moved, altered, altered_users, owners, members, altered_groups, targets, policies
    from unnest(marks) m, unnest(m.ids) i;
    addresses := array(select distinct host(a) from unnest(marks) m, unnest(m.addresses) a);

    devices := moved || array(
        select p.device_id
        from public.wireguard_peers p
        where p.gateway_id = me and p.deleted_at is null and p.device_id = any (altered)
        union
        select p.device_id
        from public.devices d
        join public.wireguard_peers p on p.device_id = d.id
        where d.user_id = any (altered_users) and p.gateway_id = me and p.deleted_at is null
        union
        select p.device_id
        from public.wireguard_peers p
        where p.gateway_id = me and p.deleted_at is null and host(p.assigned_ip) = any (addresses)
        except
        select i from unnest(moved) i
    );
    -- Most changes are of devices alone: no group and no policy is looked at for those.
    if cardinality(moved || owners || members || altered_groups || targets || policies) > 0 then
        select f.users, f.policies
        into users, policies
        from gatepost.followed(
            me, marks, moved, owners, members, altered_groups, targets, policies
        ) f;
    end if;

    if cardinality(devices) + cardinality(users) + cardinality(policies) > 10000 then
        everything := 'more than 10000 devices, users and policies changed';
        devices := '{}';
        users := '{}';
        policies := '{}';
    end if;
end $$;

-- Addresses the marks that were addressed to nobody, once for all: to the gateways with a peer that is
-- concerned, one mark for each gateway and kind, as if the writer had known. Where very many marks
-- wait, nobody was here to do it; then each reader looks through them itself. Its caller holds the
-- row of gatepost.addressed.
create function gatepost.address() returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
set row_security = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set jit = off as $$
declare
    last gatepost.addressed;
    waiting gatepost.change[];
    next pg_snapshot;
begin
    select * into last from gatepost.addressed;
    -- One statement: what is waiting, and the snapshot that sees just this.
    select pg_current_snapshot(), array(
        select c
        from gatepost.change c
        where c.gateway_id = gatepost.nobody() and c.xid >= pg_snapshot_xmin(last.seen)
            and c.xid < pg_snapshot_xmax(pg_current_snapshot())
            and not pg_visible_in_snapshot(c.xid, last.seen)
        limit 10001
    )
    into next, waiting;
    if cardinality(waiting) > 10000 then
        perform gatepost.begin_turns(next);
        return;
    end if;
    insert into gatepost.change (gateway_id, kind, ids, group_ids)
    select gatepost.everyone(), w.kind, null::uuid[], null::uuid[]
    from unnest(waiting) w
    where w.ids is null
    union all
    select gatepost.everyone(), w.kind, w.ids, null
    from unnest(waiting) w
    where w.kind = 'target'
        and exists (select from public.policy_targets t where t.target_id = any (w.ids))
    union all
    select p.gateway_id, w.kind, array_agg(distinct p.device_id), null
    from unnest(waiting) w
    cross join unnest(w.ids) i
    join public.wireguard_peers p on p.device_id = i and p.deleted_at is null
    where w.kind = 'device'
    group by p.gateway_id, w.kind
    union all
    select p.gateway_id, w.kind, array_agg(distinct d.user_id), w.group_ids
    from unnest(waiting) with ordinality w
    cross join unnest(w.ids) i
    join public.devices d on d.user_id = i
    join public.wireguard_peers p on p.device_id = d.id and p.deleted_at is null
    where w.kind in ('user', 'membership')
    group by p.gateway_id, w.kind, w.group_ids, w.ordinality;
    update gatepost.addressed set seen = next, at = now();
end $$;

-- Notifies the gateways whom marks concern that came since the last time. Its caller holds the row
-- of gatepost.addressed.
create function gatepost.tell() returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
declare
    last gatepost.addressed;
    concerned uuid[];
    next pg_snapshot;
begin
    select * into last from gatepost.addressed;
    -- One statement, and what this very transaction has addressed.
    select pg_current_snapshot(), array(
        select distinct c.gateway_id
        from gatepost.change c
        where c.xid >= pg_snapshot_xmin(last.told) and c.xid <> last.told_by
            and (c.xid < pg_snapshot_xmax(pg_current_snapshot()) or c.xid = pg_current_xact_id())
            and not pg_visible_in_snapshot(c.xid, last.told)
            and c.gateway_id <> gatepost.nobody()
    )
    into next, concerned;
    -- Every session that listens reads every notification: beyond some, one for all is cheaper.
    if gatepost.everyone() = any (concerned)
        or cardinality(concerned) * 2 > (select count(*) from gatepost.attached)
    then
        perform pg_notify('gatepost_all', '');
    else
        perform pg_notify('gatepost_' || g, '') from unnest(concerned) g;
    end if;
    -- The more are woken, the more there is to do until the next time.
    update gatepost.addressed
    set told = next, told_by = pg_current_xact_id(), told_at = now(),
        rest = case when cardinality(concerned) > 100 then interval '700 milliseconds'
            else interval '250 milliseconds' end;
end $$;

-- From here on marks are addressed: what came before is looked through by each reader itself.
create function gatepost.begin_turns(present pg_snapshot) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
    update gatepost.addressed
    set history = gatepost.history(), since = present, seen = present, at = now(),
        told = present, told_by = pg_current_xact_id(), told_at = now(),
        rest = interval '250 milliseconds';
    perform pg_notify('gatepost_all', '');
end $$;

-- Addresses and notifies where it is time to. Who has its turn at the same time leaves it to the other. To
-- address is to write, so it is done for many marks at once, but often enough that few wait: each
-- reader looks through those that do. A clock that was set back delays nothing.
create function gatepost.take_turn() returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
declare
    present constant text := gatepost.history();
    last gatepost.addressed;
    addresses boolean;
    tells boolean;
begin
    select * into last from gatepost.addressed;
    addresses := last.history is distinct from present
        or clock_timestamp() not between last.at and last.at + interval '50 milliseconds'
            and gatepost.waits(last.seen);
    tells := addresses is not true
        and clock_timestamp() not between last.told_at and last.told_at + last.rest
        and exists (
            select
            from gatepost.change c
            where c.xid >= pg_snapshot_xmin(last.told) and c.xid <> last.told_by
                and c.xid < pg_snapshot_xmax(pg_current_snapshot())
                and not pg_visible_in_snapshot(c.xid, last.told)
        );
    if not addresses and not tells then
        return;
    end if;
    perform from gatepost.addressed for update skip locked;
    if not found then
        return;
    end if;
    -- Lost in a crash, it is done again: the history is another one then.
    perform set_config('synchronous_commit', 'off', true);
    if last.history is distinct from present then
        -- Not what the session remembers, which its role may have made up.
        perform set_config('gatepost.server', '', false);
        if gatepost.history() = present then
            perform gatepost.begin_turns(pg_current_snapshot());
        end if;
        return;
    end if;
    if addresses then
        perform gatepost.address();
    end if;
    if clock_timestamp() not between last.told_at and last.told_at + last.rest then
        perform gatepost.tell();
    end if;
end $$;

-- Whether a mark is addressed to nobody since `seen`.
create function gatepost.waits(seen pg_snapshot) returns boolean
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
begin
    return exists (
        select
        from gatepost.change c
        where c.gateway_id = gatepost.nobody() and c.xid >= pg_snapshot_xmin(seen)
            and c.xid < pg_snapshot_xmax(pg_current_snapshot())
            and not pg_visible_in_snapshot(c.xid, seen)
    );
end $$;

-- The cheap question of an agent that polls or takes turns. `news`: ask gatepost.changes(). Else
-- `cursor` is the next one, and nothing that was committed before `quiet_until` concerns the gateway. A
-- mark that waits to be addressed is not looked at, and stays beyond the cursor; but if nobody
-- addresses it, whatever holds that up, each reader looks for itself.
create function gatepost.poll(
    since text,
    since_epoch text,
    out cursor text,
    out quiet_until timestamptz,
    out news boolean
)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
declare
    me constant uuid := gatepost.me();
    present constant text := gatepost.history();
    behind constant pg_snapshot := since::pg_snapshot;
begin
    perform gatepost.take_turn();
    -- One statement: one snapshot.
    select
        case
            when not a.waits then pg_current_snapshot()
            when pg_snapshot_xmax(a.seen) > pg_snapshot_xmax(behind) then a.seen
            else behind
        end::text,
        case when a.waits then least(a.at, now()) else now() end,
        a.history is distinct from present
            or (a.waits and clock_timestamp() not between a.at and a.at + interval '2 seconds')
            or (
                -- Of before the first that were addressed.
                pg_snapshot_xmax(a.since) > pg_snapshot_xmin(behind)
                and exists (
                    select
                    from gatepost.change c
                    where c.gateway_id = gatepost.nobody()
                        and c.xid >= pg_snapshot_xmin(behind)
                        and c.xid < pg_snapshot_xmax(a.since)
                        and not pg_visible_in_snapshot(c.xid, behind)
                )
            )
            or exists (
                select
                from gatepost.change c
                where c.gateway_id in (me, gatepost.everyone())
                    and c.xid >= pg_snapshot_xmin(behind)
                    and (
                        c.xid < pg_snapshot_xmax(pg_current_snapshot())
                        or c.xid = pg_current_xact_id_if_assigned() -- addressed just now
                    )
                    and not pg_visible_in_snapshot(c.xid, behind)
            )
    into cursor, quiet_until, news
    from (select *, gatepost.waits(seen) as waits from gatepost.addressed offset 0) a;
    -- Last: the very mark that we ask for may just have been pruned.
    news := news or gatepost.unusable(behind, since_epoch) is not null;
end $$;

reset role;
