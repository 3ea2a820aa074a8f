//! What the network plugin set up, as the guest will be told.

use std::net::IpAddr;
use std::path::PathBuf;

use futures::TryStreamExt as _;
use kata_cc_agent_protocol::rpc::types;
use kata_cc_vmm::request::Mac;
use protobuf::MessageField;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressScope};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourState};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType};
use rtnetlink::{Handle, RouteMessageBuilder};

use super::{Interface, MAX_ENTRIES, MAX_INTERFACES, NetworkError, PodNetwork};

fn step(step: &'static str) -> impl Fn(rtnetlink::Error) -> NetworkError {
    move |source| NetworkError::Netlink { step, source }
}

pub(super) async fn network(handle: &Handle, netns: PathBuf) -> Result<PodNetwork, NetworkError> {
    let interfaces = interfaces(handle).await?;
    let routes = routes(handle, &interfaces).await?;
    let neighbours = neighbours(handle, &interfaces).await?;
    Ok(PodNetwork { netns, interfaces, routes, neighbours })
}

async fn interfaces(handle: &Handle) -> Result<Vec<Interface>, NetworkError> {
    let mut found = Vec::new();
    let mut links = handle.link().get().execute();
    while let Some(link) = links.try_next().await.map_err(step("cannot list the pod's interfaces"))? {
        let up = link.header.flags.contains(LinkFlags::Up) && !link.header.flags.contains(LinkFlags::Loopback);
        if !up || link.header.link_layer_type != LinkLayerType::Ether {
            continue;
        }
        let (mut name, mut mac, mut mtu) = (None, None, 1500);
        for attribute in link.attributes {
            match attribute {
                LinkAttribute::IfName(value) => name = Some(value),
                LinkAttribute::Address(bytes) => mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().map(Mac),
                LinkAttribute::Mtu(value) => mtu = value,
                _ => {}
            }
        }
        if let (Some(name), Some(mac)) = (name, mac) {
            found.push(Interface { index: link.header.index, name, mac, mtu, addresses: Vec::new() });
        }
        if found.len() > MAX_INTERFACES {
            return Err(NetworkError::TooMany);
        }
    }
    found.sort_by_key(|interface| interface.index);
    let mut addresses = handle.address().get().execute();
    while let Some(message) = addresses.try_next().await.map_err(step("cannot list the pod's addresses"))? {
        // The guest's kernel makes its own link-local addresses from the same Ethernet address.
        let own = message.header.scope == AddressScope::Link && message.header.family == AddressFamily::Inet6;
        let Some(interface) = found.iter_mut().find(|interface| interface.index == message.header.index) else { continue };
        if own || interface.addresses.len() >= MAX_ENTRIES {
            continue;
        }
        // With a peer, `Local` is ours and `Address` the peer's; without, IPv6 has `Address` only.
        let local =
            message.attributes.iter().find_map(|attribute| if let AddressAttribute::Local(ip) = attribute { Some(*ip) } else { None });
        let any =
            message.attributes.iter().find_map(|attribute| if let AddressAttribute::Address(ip) = attribute { Some(*ip) } else { None });
        if let Some(ip) = local.or(any) {
            interface.addresses.push(address(ip, message.header.prefix_len.to_string()));
        }
    }
    Ok(found)
}

fn family(ip: IpAddr) -> types::IPFamily {
    if ip.is_ipv4() { types::IPFamily::v4 } else { types::IPFamily::v6 }
}

fn address(ip: IpAddr, mask: String) -> types::IPAddress {
    types::IPAddress { family: family(ip).into(), address: ip.to_string(), mask, ..Default::default() }
}

fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

async fn routes(handle: &Handle, interfaces: &[Interface]) -> Result<Vec<types::Route>, NetworkError> {
    let mut found = Vec::new();
    let questions = [RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(), RouteMessageBuilder::<std::net::Ipv6Addr>::new().build()];
    for question in questions {
        let mut messages = handle.route().get(question).execute();
        while let Some(message) = messages.try_next().await.map_err(step("cannot list the pod's routes"))? {
            if found.len() < MAX_ENTRIES
                && let Some(route) = route(&message, interfaces)
            {
                found.push(route);
            }
        }
    }
    // A gateway can only be added once there is a way to it.
    found.sort_by_key(|route| !route.gateway.is_empty());
    Ok(found)
}

fn route(message: &RouteMessage, interfaces: &[Interface]) -> Option<types::Route> {
    let header = &message.header;
    let main = header.table == RouteHeader::RT_TABLE_MAIN && header.kind == RouteType::Unicast;
    // The guest's kernel adds its own for each address.
    if !main || header.protocol == RouteProtocol::Kernel {
        return None;
    }
    let (mut destination, mut gateway, mut source, mut device) = (None, None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip_of(address),
            RouteAttribute::Gateway(address) => gateway = ip_of(address),
            RouteAttribute::PrefSource(address) => source = ip_of(address),
            RouteAttribute::Oif(index) => device = interfaces.iter().find(|interface| interface.index == *index),
            _ => {}
        }
    }
    let family = if header.address_family == AddressFamily::Inet6 { types::IPFamily::v6 } else { types::IPFamily::v4 };
    Some(types::Route {
        dest: destination.map(|ip| format!("{ip}/{}", header.destination_prefix_length)).unwrap_or_default(),
        gateway: gateway.map(|ip| ip.to_string()).unwrap_or_default(),
        device: device?.name.clone(),
        source: source.map(|ip| ip.to_string()).unwrap_or_default(),
        scope: u8::from(header.scope).into(),
        family: family.into(),
        ..Default::default()
    })
}

async fn neighbours(handle: &Handle, interfaces: &[Interface]) -> Result<Vec<types::ARPNeighbor>, NetworkError> {
    let mut found = Vec::new();
    let mut messages = handle.neighbours().get().execute();
    while let Some(message) = messages.try_next().await.map_err(step("cannot list the pod's neighbours"))? {
        // Only what the plugin fixed; the guest finds the others itself.
        if message.header.state != NeighbourState::Permanent || found.len() >= MAX_ENTRIES {
            continue;
        }
        let Some(interface) = interfaces.iter().find(|interface| interface.index == message.header.ifindex) else { continue };
        let (mut ip, mut mac) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => ip = Some(IpAddr::from(*address)),
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => ip = Some(IpAddr::from(*address)),
                NeighbourAttribute::LinkLayerAddress(bytes) => mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().map(Mac),
                _ => {}
            }
        }
        if let (Some(ip), Some(mac)) = (ip, mac)
            && !ip.is_multicast()
        {
            found.push(types::ARPNeighbor {
                toIPAddress: MessageField::some(address(ip, String::new())),
                device: interface.name.clone(),
                lladdr: mac.to_string(),
                state: u16::from(message.header.state).into(),
                ..Default::default()
            });
        }
    }
    Ok(found)
}
