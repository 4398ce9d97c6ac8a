-- A gateway that is switched off counts for a receipt, and no role sees ids of other gateways' rows.

set role gatepost_owner;
set local search_path = pg_catalog, pg_temp;

-- Of the marks for all gateways, only the ids that may be of this one. An id that no row has any more
-- stays: its withdrawal may have been a deletion.
create or replace function gatepost.marks(since text, since_epoch text)
returns table (xid text, kind text, ids uuid[])
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
set row_security = off set plan_cache_mode = force_generic_plan set enable_seqscan = off
set jit = off as $$
declare
    me constant uuid := gatepost.me();
    seen constant pg_snapshot := case when since_epoch = gatepost.epoch() then since::pg_snapshot end;
    marks gatepost.change[];
    foreign_ids uuid[];
begin
    if seen is not null then
        marks := gatepost.marks_since(me, seen);
    else
        -- The agent has just started, or follows another history than before.
        marks := array(
            select c
            from gatepost.change c
            where c.gateway_id in (me, gatepost.everyone(), gatepost.nobody())
            order by c.xid desc
            limit 5000
        );
    end if;
    foreign_ids := array(
        select l.id
        from (
            select distinct i as id
            from unnest(marks) m
            cross join unnest(m.ids) i
            where m.gateway_id <> me
                and m.kind in ('all', 'gateway', 'setting', 'peer', 'device', 'user', 'owner')
        ) l
        where (
            exists (select from public.wireguard_peers p where p.device_id = l.id)
            or exists (
                select
                from public.devices d
                join public.wireguard_peers p on p.device_id = d.id
                where d.user_id = l.id
            )
        ) and not exists (
            select
            from public.wireguard_peers p
            where p.device_id = l.id and p.gateway_id = me
        ) and not exists (
            select
            from public.devices d
            join public.wireguard_peers p on p.device_id = d.id
            where d.user_id = l.id and p.gateway_id = me
        )
    );
    return query
    select m.xid::text, m.kind::text, k.ids
    from unnest(marks) m
    cross join lateral (
        select case
            when m.gateway_id = me or m.ids is null or not m.ids && foreign_ids then m.ids
            else array(select i from unnest(m.ids) i where i <> all (foreign_ids))
        end as ids
    ) k
    where m.kind in ('all', 'gateway', 'setting', 'peer', 'device', 'user', 'owner')
        -- A mark without ids concerns everybody.
        and (cardinality(k.ids) > 0 or cardinality(m.ids) = 0 or m.ids is null);
end $$;
comment on function gatepost.marks(text, text) is
    'Marks since a cursor that may withdraw peers, or the latest if the cursor is of another epoch, without the ids of rows of other gateways alone. To be called in the transaction of the read.';

-- Also a gateway that was switched off must follow, as long as its agent is there.
create or replace function gatepost.proofs() returns table (gateway text, proven_at timestamptz)
language sql stable set search_path = pg_catalog, pg_temp as $$
    select g.name::text, case when h.hosts > 0 then h.proven_at else g.last_sync_at end
    from public.gateways g
    cross join lateral (
        select count(*) as hosts,
            case when bool_and(h.proven_at is not null) then min(h.proven_at) end as proven_at
        from gatepost.host h
        where h.gateway_id = g.id
    ) h
    where g.is_active and g.deleted_at is null
        or exists (
            select
            from gatepost.attached a
            where a.gateway_id = g.id and a.at > now() - interval '5 minutes'
        )
$$;
comment on function gatepost.proofs() is
    'The time as of which each gateway is proven on all its hosts, merged or not: of the active gateways, and of those whose agents were there in the last five minutes.';

comment on function gatepost.await_sync(timestamptz, interval) is
    'For the owner, after a commit: waits until each active gateway, and each whose agent was there in the last five minutes, has proven to follow the database as of `since`, at most for `timeout`. A gateway that has not is returned with is_proven = false.';

revoke execute on all functions in schema gatepost from public;

reset role;
