-- From a cursor to what must be read again. A cursor is the pg_snapshot of the last read: every
-- mark whose transaction that snapshot did not see is new, whatever the order of commits.

set role gatepost_owner;

create function gatepost.listed(marks gatepost.change[], kind text) returns uuid[]
language sql immutable set search_path = pg_catalog, pg_temp as $$
    select coalesce(array_agg(distinct i), '{}') from unnest(marks) m, unnest(m.ids) i
    where m.kind = $2
$$;

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
    nobody constant uuid := '00000000-0000-0000-0000-000000000000';
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
    if epoch <> since_epoch then
        everything := 'the cursor is of another epoch';
    elsif pg_snapshot_xmax(seen) > pg_snapshot_xmax(pg_current_snapshot()) then
        everything := 'the cursor is ahead of the server';
    elsif pg_snapshot_xmin(seen) < (select s.floor from gatepost.state s) then
        everything := 'the marks since the cursor are pruned';
    end if;
    if everything is not null then
        return;
    end if;

    marks := array(
        select c
        from gatepost.change c
        where c.gateway_id in (me, nobody)
            and c.xid >= pg_snapshot_xmin(seen)
            and not pg_visible_in_snapshot(c.xid, seen)
        limit 5001
    );
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

reset role;
