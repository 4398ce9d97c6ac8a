-- A bell merges fewer reports at once where a trigger of the control plane is slow. No agent takes turns any more.

set role gatepost_owner;
set local search_path = pg_catalog, pg_temp;

do $migration$
declare
    present constant text :=
        pg_get_functiondef('gatepost.merge_page_of(uuid, interval)'::regprocedure);
    made text := replace(present, 'waited interval)', 'waited interval, at_most integer)');
begin
    made := replace(made, 'limit 1000', 'limit at_most');
    if made not like '%waited interval, at_most integer)%'
        or cardinality(string_to_array(made, 'limit at_most')) <> 3
    then
        raise exception 'gatepost.merge_page_of(uuid, interval) is not as expected';
    end if;
    execute made;
end $migration$;
comment on function gatepost.merge_page_of(uuid, interval, integer) is
    'As gatepost.merge_of(), but at most so many reports of each kind. Granted to no role.';

create function gatepost.merge_gateway(gateway uuid, at_most integer)
returns table (why text, since timestamptz, lost integer)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
    -- What a crash takes back waits again.
    perform set_config('synchronous_commit', 'off', true);
    return query
    select m.why, null::timestamptz, m.lost
    from gatepost.merge_page_of(gateway, '0', greatest(1, least(at_most, 1000))) m
    where m.lost > 0;
    return query
    select r.why, r.since, 0
    from gatepost.refused r
    where r.gateway_id = gateway
    order by r.relation;
end $$;
comment on function gatepost.merge_gateway(uuid, integer) is
    'As gatepost.merge_gateway(uuid), but at most so many reports of each kind.';

-- Agents of this version ask gatepost.news() instead.
comment on function gatepost.poll(text, text) is
    'For agents of the version before. Leaves with the next version.';
comment on function gatepost.take_turn() is 'For gatepost.poll(). Leaves with the next version.';
comment on function gatepost.tell() is 'For gatepost.poll(). Leaves with the next version.';

revoke execute on all functions in schema gatepost from public;

reset role;
