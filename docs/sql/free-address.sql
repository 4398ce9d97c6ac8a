-- Defines pg_temp.free_address(gateway id): the lowest tunnel address that no peer of the gateway has
-- and no row of ip_allocations holds. pg_temp.next_address(gateway id) fails if there is none. The other
-- scripts include this file.
create or replace function pg_temp.free_address(gateway uuid) returns inet
language sql as $$
    with pool as (
        select g.vpn_cidr, host(g.vpn_cidr)::inet as first, coalesce(
            (
                select host(a.address)::inet
                from ip_allocations a
                where a.gateway_id = g.id and a.device_id is null and a.status = 'gateway'
                order by a.address
                limit 1
            ),
            host(g.vpn_cidr)::inet + 1
        ) as own
        from gateways g
        where g.id = gateway
    ),
    used as (
        select own as address from pool
        union
        select host(p.assigned_ip)::inet
        from wireguard_peers p
        where p.gateway_id = gateway and p.deleted_at is null
        union
        select host(a.address)::inet
        from ip_allocations a
        where a.gateway_id = gateway and a.status <> 'released'
    ),
    candidates as (
        select first + 1 as address from pool
        union
        select address + 1 from used
    )
    select min(c.address)
    from candidates c, pool
    where c.address << pool.vpn_cidr
        and c.address <> host(broadcast(pool.vpn_cidr))::inet
        and not exists (select from used u where u.address = c.address)
$$;

create or replace function pg_temp.next_address(gateway uuid) returns inet
language plpgsql as $$
declare
    found inet := pg_temp.free_address(gateway);
    full_one gateways := (select g from gateways g where g.id = gateway);
begin
    if found is null then
        raise exception 'gateway "%" has no free address in %, its vpn_cidr', full_one.name, full_one.vpn_cidr;
    end if;
    return found;
end $$;
