-- Prints a configuration for wg-quick, which reads the private key from /etc/wireguard/NAME.key:
--
--   psql -At -v user=alice -v device=laptop -f client-config.sql >laptop.conf
--
-- The client sends through the tunnel what wireguard_peers.allowed_ips says, or, if that is empty, the
-- gateway's network and the destinations of its policies with effect 'allow'.
\set ON_ERROR_STOP on
\set QUIET on
\ir checks.sql
select pg_temp.are_passed('user', :'user', 'device', :'device') \g /dev/null
select pg_temp.device_named(:'user', :'device') as device_id \gset
with peer as (
    select p.*, d.user_id, g.endpoint, g.vpn_cidr, g.public_key as gateway_key,
        g.dns_servers || p.dns_servers as dns
    from wireguard_peers p
    join gateways g on g.id = p.gateway_id
    join devices d on d.id = p.device_id
    where d.id = :'device_id' and p.deleted_at is null
),
allowing as (
    select distinct o.id, o.full_tunnel
    from peer
    join policies o on o.effect = 'allow' and o.is_active and o.deleted_at is null
    join policy_targets t on t.policy_id = o.id
    where (t.target_type = 'device' and t.target_id = peer.device_id)
        or (t.target_type = 'user' and t.target_id = peer.user_id)
        or (
            t.target_type = 'group'
            and t.target_id in (select m.group_id from group_memberships m where m.user_id = peer.user_id)
        )
),
routed as (
    select unnest(allowed_ips) as prefix from peer
    union
    select vpn_cidr from peer where allowed_ips = '{}'
    union
    select d.destination
    from peer, allowing a
    join policy_destinations d on d.policy_id = a.id
    where peer.allowed_ips = '{}'
    union
    select unnest('{0.0.0.0/0,::/0}'::cidr[])
    from peer, allowing a
    where a.full_tunnel and peer.allowed_ips = '{}'
)
select concat_ws(E'\n',
    '[Interface]',
    'Address = ' || host(assigned_ip),
    'DNS = ' || nullif(array_to_string(dns, ', '), ''),
    'PostUp = wg set %i private-key /etc/wireguard/%i.key',
    '',
    '[Peer]',
    'PublicKey = ' || gateway_key,
    'Endpoint = ' || endpoint,
    'AllowedIPs = ' || (
        select string_agg(prefix::text, ', ' order by prefix)
        from routed
        where family(prefix) = family(peer.assigned_ip)
    ),
    'PersistentKeepalive = 25'
)
from peer;
