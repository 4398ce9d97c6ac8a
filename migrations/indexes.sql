create index concurrently if not exists gatepost_peers_by_address
    on public.wireguard_peers (gateway_id, assigned_ip) where deleted_at is null;
-- Including deleted peers, because audit entries about a device outlive its peer.
create index concurrently if not exists gatepost_peers_of_device
    on public.wireguard_peers (device_id, gateway_id);
create index concurrently if not exists gatepost_devices_by_user
    on public.devices (user_id);
create index concurrently if not exists gatepost_memberships_by_user
    on public.group_memberships (user_id, group_id);
create index concurrently if not exists gatepost_memberships_by_group
    on public.group_memberships (group_id, user_id);
create index concurrently if not exists gatepost_targets_by_target
    on public.policy_targets (target_id);
create index concurrently if not exists gatepost_targets_by_policy
    on public.policy_targets (policy_id);
create index concurrently if not exists gatepost_destinations_by_policy
    on public.policy_destinations (policy_id)
