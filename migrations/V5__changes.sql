-- From a cursor to what must be read again. A cursor is the pg_snapshot of the last read: every
-- mark whose transaction that snapshot did not see is new, whatever the order of commits.

set role gatepost_owner;

create function gatepost.listed(marks gatepost.change[], kind gatepost.kind) returns uuid[]
language sql immutable set search_path = pg_catalog, pg_temp as $$
    select coalesce(array_agg(distinct i), '{}') from unnest(marks) m, unnest(m.ids) i
    where m.kind = $2
$$;

-- Why a cursor cannot be followed; null: it can.
create function gatepost.unusable(seen pg_snapshot, since_epoch text) returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
    if gatepost.epoch() <> since_epoch then
        return 'the cursor is of another epoch';
    elsif pg_snapshot_xmax(seen) > pg_snapshot_xmax(pg_current_snapshot()) then
        return 'the cursor is ahead of the server';
    elsif pg_snapshot_xmin(seen) < (select s.floor from gatepost.state s) then
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
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
declare
    me constant uuid := gatepost.me();
    seen constant pg_snapshot := since::pg_snapshot;
    marks gatepost.change[];
    moved uuid[]; -- devices whose peers here came, went or moved
    owners uuid[]; -- users who may own a peer here only now, or no longer
    touched uuid[]; -- devices whose peers, if they are here, read otherwise
    addresses text[]; -- allocated otherwise
    regrouped uuid[]; -- users who, if they own a peer here, are in other groups now
    targets uuid[]; -- what policies may name and match otherwise now
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
            when 'all' then 'a table was truncated'
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

    moved := gatepost.listed(marks, 'peer');
    touched := array(
        select i from unnest(gatepost.listed(marks, 'device')) i
        union
        select d.id from public.devices d where d.user_id = any (gatepost.listed(marks, 'user'))
        except
        select i from unnest(moved) i
    );
    addresses := array(
        select distinct host(a) from unnest(marks) m, unnest(m.addresses) a where m.kind = 'address'
    );
    devices := moved || array(
        select p.device_id
        from public.wireguard_peers p
        where p.gateway_id = me and p.deleted_at is null and p.device_id = any (touched)
        union
        select p.device_id
        from public.wireguard_peers p
        where p.gateway_id = me and p.deleted_at is null and host(p.assigned_ip) = any (addresses)
        except
        select i from unnest(moved) i
    );

    owners := array(
        select i from unnest(gatepost.listed(marks, 'owner')) i
        union
        select d.user_id from public.devices d where d.id = any (moved)
    );
    regrouped := array(
        select i from unnest(gatepost.listed(marks, 'membership')) i
        union
        select g.user_id
        from public.group_memberships g
        where g.group_id = any (gatepost.listed(marks, 'group'))
        except
        select i from unnest(owners) i
    );
    users := owners || array(
        select distinct d.user_id
        from public.devices d
        join public.wireguard_peers p on p.device_id = d.id
        where d.user_id = any (regrouped) and p.gateway_id = me and p.deleted_at is null
    );

    targets := moved || owners || array(
        select g.group_id from public.group_memberships g where g.user_id = any (owners)
        union
        select g
        from unnest(marks) m, unnest(m.group_ids) g
        where m.kind = 'membership' and m.ids && users
        union
        select i from unnest(gatepost.listed(marks, 'target')) i
        union
        select i from unnest(gatepost.listed(marks, 'group')) i
    );
    policies := array(
        select i from unnest(gatepost.listed(marks, 'policy')) i
        union
        select t.policy_id
        from public.policy_targets t
        join public.policies p on p.id = t.policy_id
        where t.target_id = any (targets) and p.is_active and p.deleted_at is null
    );

    if cardinality(devices) + cardinality(users) + cardinality(policies) > 10000 then
        everything := 'more than 10000 devices, users and policies changed';
        devices := '{}';
        users := '{}';
        policies := '{}';
    end if;
end $$;

-- Addresses the marks that were addressed to nobody, once for all: to the gateways with a peer that is
-- concerned, one mark for each gateway and mark, as if the writer had known. Notifies them and those
-- that the writers addressed. Where very many marks wait, nobody was here to do it; then each reader
-- looks through them itself. Its caller holds the lock.
create function gatepost.address() returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
declare
    present constant text := gatepost.history();
    last gatepost.addressed;
    waiting gatepost.change[];
    next pg_snapshot;
    concerned uuid[];
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
    if last.history is distinct from present or cardinality(waiting) > 10000 then
        update gatepost.addressed
        set history = present, since = next, seen = next, done_by = pg_current_xact_id(), at = now(),
            rest = '250 milliseconds';
        perform pg_notify('gatepost_all', '');
        return;
    end if;
    concerned := array(
        select distinct c.gateway_id
        from gatepost.change c
        where c.xid >= pg_snapshot_xmin(last.seen) and c.xid <> last.done_by
            and c.xid < pg_snapshot_xmax(pg_current_snapshot())
            and not pg_visible_in_snapshot(c.xid, last.seen)
            and c.gateway_id <> gatepost.nobody()
    );
    with addressed as (
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
        group by p.gateway_id, w.kind, w.group_ids, w.ordinality
        returning gateway_id
    )
    select concerned || array_agg(distinct a.gateway_id) into concerned from addressed a;
    perform pg_notify(
        case when g = gatepost.everyone() then 'gatepost_all' else 'gatepost_' || g end, ''
    )
    from unnest(concerned) g;
    -- The more are woken, the more there is to do until the next time.
    update gatepost.addressed
    set seen = next, done_by = pg_current_xact_id(), at = now(),
        rest = case when cardinality(concerned) > 100 then interval '700 milliseconds'
            else interval '250 milliseconds' end;
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

-- The cheap question of an agent that polls or takes turns. `news`: ask gatepost.changes(). Else `cursor` is the
-- next one, and nothing that was committed before `quiet_until` concerns the gateway. A mark that
-- waits to be addressed is not looked at, and stays beyond the cursor.
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
    last gatepost.addressed;
begin
    news := gatepost.unusable(behind, since_epoch) is not null;
    if news then
        return;
    end if;
    select * into last from gatepost.addressed;
    if (
        last.history is distinct from present
        or (
            last.at + last.rest < clock_timestamp()
            and exists (
                select
                from gatepost.change c
                where c.xid >= pg_snapshot_xmin(last.seen) and c.xid <> last.done_by
                    and c.xid < pg_snapshot_xmax(pg_current_snapshot())
                    and not pg_visible_in_snapshot(c.xid, last.seen)
            )
        )
    ) then
        -- A lock on the row, not an advisory one, which any role of the database could keep.
        perform from gatepost.addressed for update skip locked;
        if found then
            perform gatepost.address();
        end if;
    end if;
    -- One statement: one snapshot.
    select
        case
            when not gatepost.waits(a.seen) then pg_current_snapshot()
            when pg_snapshot_xmax(a.seen) > pg_snapshot_xmax(behind) then a.seen
            else behind
        end::text,
        case when gatepost.waits(a.seen) then a.at else now() end,
        a.history is distinct from present
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
    from gatepost.addressed a;
end $$;

reset role;
