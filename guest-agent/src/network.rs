//! The pod's network interface, addresses, routes and neighbours, as the host tells them.
//!
//! The host owns the network and may tell anything about it; nothing here is relied on for security. What is refused is what
//! would reach inside the guest: the loopback interface and its addresses, on which the pod-local API listens.

use std::net::IpAddr;

use futures::TryStreamExt;
use kata_cc_agent_protocol::rpc::types;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::neighbour::NeighbourState;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, RouteMessageBuilder};
use thiserror::Error;

/// The loopback interface.
const LOOPBACK: &str = "lo";

/// The kernel's main routing table, which is the pod's.
const MAIN_TABLE: u8 = 254;

/// Why the network was not set up as asked.
#[derive(Debug, Error)]
pub(crate) enum NetworkError {
    /// The kernel's interface is not to be had.
    #[error("cannot talk to the kernel about the network")]
    Socket(#[source] std::io::Error),
    /// The kernel refused.
    #[error("network: {step}")]
    Kernel {
        /// What was being done.
        step: &'static str,
        /// What the kernel said.
        #[source]
        source: rtnetlink::Error,
    },
    /// Something that is not what it should be.
    #[error("network: {what} {value:?}: expected {expected}")]
    Value {
        /// Which value.
        what: &'static str,
        /// What it was.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
    /// The guest has no such interface.
    #[error("network: the guest has no interface {0}")]
    NoInterface(String),
    /// The guest's own.
    #[error("network: the loopback interface and its addresses are the guest's own")]
    Loopback,
}

fn at(step: &'static str) -> impl FnOnce(rtnetlink::Error) -> NetworkError {
    move |source| NetworkError::Kernel { step, source }
}

fn wrong(what: &'static str, value: &str, expected: &'static str) -> NetworkError {
    NetworkError::Value { what, value: value.to_owned(), expected }
}

/// The guest's network.
#[derive(Debug, Clone)]
pub(crate) struct Network {
    handle: Handle,
}

impl Network {
    /// Opens the kernel's interface.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn open() -> Result<Self, NetworkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NetworkError::Socket)?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Brings the loopback interface up.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) async fn loopback_up(&self) -> Result<(), NetworkError> {
        let link = self.link(|link| name_of(link) == Some(LOOPBACK)).await?;
        let link = link.ok_or_else(|| NetworkError::NoInterface(LOOPBACK.to_owned()))?;
        self.set(LinkUnspec::new_with_index(link.header.index).up(), "bringing loopback up").await
    }

    async fn links(&self) -> Result<Vec<LinkMessage>, NetworkError> {
        let links = self.handle.link().get().execute().try_collect().await;
        links.map_err(at("listing interfaces"))
    }

    async fn link(&self, wanted: impl Fn(&LinkMessage) -> bool) -> Result<Option<LinkMessage>, NetworkError> {
        Ok(self.links().await?.into_iter().find(wanted))
    }

    async fn index_of(&self, name: &str) -> Result<u32, NetworkError> {
        if name == LOOPBACK {
            return Err(NetworkError::Loopback);
        }
        let link = self.link(|link| name_of(link) == Some(name)).await?;
        link.map(|link| link.header.index).ok_or_else(|| NetworkError::NoInterface(name.to_owned()))
    }

    async fn set(&self, message: LinkMessageBuilder<LinkUnspec>, step: &'static str) -> Result<(), NetworkError> {
        self.handle.link().set(message.build()).execute().await.map_err(at(step))
    }

    /// Gives the interface with that hardware address its name, size and addresses, and brings it up.
    ///
    /// # Errors
    /// When there is none, or the kernel refuses.
    pub(crate) async fn update_interface(&self, asked: &types::Interface) -> Result<types::Interface, NetworkError> {
        if asked.name == LOOPBACK {
            return Err(NetworkError::Loopback);
        }
        let hardware = parse_hardware(&asked.hwAddr)?;
        let addresses = asked.IPAddresses.iter().map(parse_address).collect::<Result<Vec<_>, _>>()?;
        let mtu = u32::try_from(asked.mtu).map_err(|_| wrong("MTU", &asked.mtu.to_string(), "less than 2^32"))?;
        let link = self
            .link(|link| hardware_of(link) == Some(&hardware[..]))
            .await?
            .ok_or_else(|| NetworkError::NoInterface(asked.hwAddr.clone()))?;
        let index = link.header.index;
        // A name can only be changed while the interface is down.
        if !asked.name.is_empty() && name_of(&link) != Some(asked.name.as_str()) {
            if link.header.flags.contains(LinkFlags::Up) {
                self.set(LinkUnspec::new_with_index(index).down(), "taking the interface down").await?;
            }
            let named = LinkUnspec::new_with_index(index).name(asked.name.as_str());
            self.set(named, "naming the interface").await?;
        }
        self.replace_addresses(index, &addresses).await?;
        let mut up = LinkUnspec::new_with_index(index).up();
        if mtu != 0 {
            up = up.mtu(mtu);
        }
        if asked.raw_flags & libc::IFF_NOARP.cast_unsigned() != 0 {
            up = up.arp(false);
        }
        self.set(up, "bringing the interface up").await?;
        Ok(asked.clone())
    }

    async fn replace_addresses(&self, index: u32, addresses: &[(IpAddr, u8)]) -> Result<(), NetworkError> {
        let old: Vec<_> =
            self.handle.address().get().set_link_index_filter(index).execute().try_collect().await.map_err(at("listing addresses"))?;
        for message in old {
            let kept = message.attributes.iter().any(|attribute| match attribute {
                AddressAttribute::Address(address) => addresses.contains(&(*address, message.header.prefix_len)) || is_link_local(address),
                _ => false,
            });
            if !kept && message.header.index == index {
                self.handle.address().del(message).execute().await.map_err(at("removing an address"))?;
            }
        }
        for (address, prefix) in addresses {
            self.handle.address().add(index, *address, *prefix).replace().execute().await.map_err(at("adding an address"))?;
        }
        Ok(())
    }

    /// Makes the routes those that are asked for, in place of what was there on other interfaces than loopback.
    ///
    /// # Errors
    /// When one does not make sense, or the kernel refuses.
    pub(crate) async fn update_routes(&self, asked: &[types::Route]) -> Result<Vec<types::Route>, NetworkError> {
        let mut routes = Vec::with_capacity(asked.len());
        for route in asked {
            let index = self.index_of(&route.device).await?;
            routes.push(parse_route(route, index)?);
        }
        let loopback = self.link(|link| name_of(link) == Some(LOOPBACK)).await?;
        let loopback = loopback.map(|link| link.header.index);
        for old in self.routes().await? {
            // What the kernel made for an address goes with the address.
            if old.header.protocol != RouteProtocol::Kernel && output_of(&old) != loopback {
                self.handle.route().del(old).execute().await.map_err(at("removing a route"))?;
            }
        }
        // A gateway can only be used once there is a route to it.
        routes.sort_by_key(has_gateway);
        for route in routes {
            self.handle.route().add(route).replace().execute().await.map_err(at("adding a route"))?;
        }
        self.list_routes().await
    }

    async fn routes(&self) -> Result<Vec<RouteMessage>, NetworkError> {
        let mut all = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut filter = RouteMessage::default();
            filter.header.address_family = family;
            let routes: Vec<_> = self.handle.route().get(filter).execute().try_collect().await.map_err(at("listing routes"))?;
            all.extend(routes.into_iter().filter(|route| route.header.table == MAIN_TABLE && route.header.kind == RouteType::Unicast));
        }
        Ok(all)
    }

    /// Adds permanent neighbours.
    ///
    /// # Errors
    /// When one does not make sense, or the kernel refuses.
    pub(crate) async fn add_neighbours(&self, asked: &[types::ARPNeighbor]) -> Result<(), NetworkError> {
        for neighbour in asked {
            let index = self.index_of(&neighbour.device).await?;
            let address = parse_ip("neighbour address", &neighbour.toIPAddress.address)?;
            let hardware = parse_hardware(&neighbour.lladdr)?;
            let state = u16::try_from(neighbour.state).map_err(|_| wrong("neighbour state", &neighbour.state.to_string(), "0 to 65535"))?;
            let state = if state == 0 { NeighbourState::Permanent } else { state.into() };
            self.handle
                .neighbours()
                .add(index, address)
                .link_layer_address(&hardware)
                .state(state)
                .replace()
                .execute()
                .await
                .map_err(at("adding a neighbour"))?;
        }
        Ok(())
    }

    /// The interfaces but loopback.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) async fn list_interfaces(&self) -> Result<Vec<types::Interface>, NetworkError> {
        let addresses: Vec<_> = self.handle.address().get().execute().try_collect().await.map_err(at("listing addresses"))?;
        let links = self.links().await?;
        let interfaces = links.iter().filter(|link| name_of(link) != Some(LOOPBACK)).map(|link| {
            let own = addresses.iter().filter(|address| address.header.index == link.header.index);
            types::Interface {
                device: name_of(link).unwrap_or_default().to_owned(),
                name: name_of(link).unwrap_or_default().to_owned(),
                hwAddr: hardware_of(link).map(format_hardware).unwrap_or_default(),
                mtu: mtu_of(link).into(),
                IPAddresses: own
                    .filter_map(|message| {
                        let address = message.attributes.iter().find_map(|attribute| match attribute {
                            AddressAttribute::Address(address) => Some(*address),
                            _ => None,
                        })?;
                        Some(types::IPAddress {
                            family: family_of(&address).into(),
                            address: address.to_string(),
                            mask: message.header.prefix_len.to_string(),
                            ..Default::default()
                        })
                    })
                    .collect(),
                ..Default::default()
            }
        });
        Ok(interfaces.collect())
    }

    /// The routes of the pod.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) async fn list_routes(&self) -> Result<Vec<types::Route>, NetworkError> {
        let links = self.links().await?;
        let device = |index: Option<u32>| {
            let link = links.iter().find(|link| Some(link.header.index) == index);
            link.and_then(name_of).unwrap_or_default().to_owned()
        };
        let routes = self.routes().await?;
        Ok(routes.iter().map(|route| format_route(route, device(output_of(route)))).collect())
    }
}

fn name_of(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}

fn hardware_of(link: &LinkMessage) -> Option<&[u8]> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(address) => Some(address.as_slice()),
        _ => None,
    })
}

fn mtu_of(link: &LinkMessage) -> u32 {
    let mtu = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    });
    mtu.unwrap_or_default()
}

fn output_of(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

fn has_gateway(route: &RouteMessage) -> bool {
    route.attributes.iter().any(|attribute| matches!(attribute, RouteAttribute::Gateway(_)))
}

fn is_link_local(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

fn family_of(address: &IpAddr) -> types::IPFamily {
    match address {
        IpAddr::V4(_) => types::IPFamily::v4,
        IpAddr::V6(_) => types::IPFamily::v6,
    }
}

fn format_hardware(address: &[u8]) -> String {
    let bytes: Vec<String> = address.iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.join(":")
}

/// An Ethernet address of an interface: six bytes, not all zero (that is loopback's).
fn parse_hardware(text: &str) -> Result<[u8; 6], NetworkError> {
    let mut address = [0; 6];
    let mut parts = text.split(':');
    let whole = address.iter_mut().all(|byte| {
        let hex = |part: &&str| part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit());
        let part = parts.next().filter(hex);
        part.and_then(|part| u8::from_str_radix(part, 16).ok()).map(|value| *byte = value).is_some()
    });
    if whole && parts.next().is_none() && address != [0; 6] {
        Ok(address)
    } else {
        Err(wrong("hardware address", text, "six bytes such as 02:00:00:00:00:01"))
    }
}

fn parse_ip(what: &'static str, text: &str) -> Result<IpAddr, NetworkError> {
    let address: IpAddr = text.parse().map_err(|_| wrong(what, text, "an IP address"))?;
    if address.is_loopback() {
        return Err(NetworkError::Loopback);
    }
    Ok(address)
}

fn parse_prefix(address: &IpAddr, text: &str) -> Result<u8, NetworkError> {
    let longest = if address.is_ipv4() { 32 } else { 128 };
    match text.parse() {
        Ok(prefix) if prefix <= longest => Ok(prefix),
        _ => Err(wrong("prefix length", text, "0 to 32, or to 128 for IPv6")),
    }
}

fn parse_address(asked: &types::IPAddress) -> Result<(IpAddr, u8), NetworkError> {
    let address = parse_ip("address", &asked.address)?;
    Ok((address, parse_prefix(&address, &asked.mask)?))
}

fn parse_route(asked: &types::Route, index: u32) -> Result<RouteMessage, NetworkError> {
    let mut builder = RouteMessageBuilder::<IpAddr>::new()
        .output_interface(index)
        .table_id(MAIN_TABLE.into())
        .protocol(RouteProtocol::Boot)
        .kind(RouteType::Unicast)
        .scope(RouteScope::from(u8::try_from(asked.scope).unwrap_or(0)));
    let invalid = |what, text: &str| wrong(what, text, "the same family in all parts of a route");
    let default = asked.dest.is_empty() || asked.dest == "default";
    if !default {
        let (address, prefix) = match asked.dest.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (asked.dest.as_str(), None),
        };
        let address = parse_ip("destination", address)?;
        let prefix = match prefix {
            Some(prefix) => parse_prefix(&address, prefix)?,
            None if address.is_ipv4() => 32,
            None => 128,
        };
        builder = builder.destination_prefix(address, prefix).map_err(|_| invalid("destination", &asked.dest))?;
    }
    if !asked.gateway.is_empty() {
        let gateway = parse_ip("gateway", &asked.gateway)?;
        let family = if gateway.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let header = &mut builder.get_mut().header;
        if header.address_family == AddressFamily::Unspec {
            header.address_family = family;
        } else if header.address_family != family {
            return Err(invalid("gateway", &asked.gateway));
        }
        builder = builder.gateway(gateway).map_err(|_| invalid("gateway", &asked.gateway))?;
    }
    if !asked.source.is_empty() {
        let source = parse_ip("source", &asked.source)?;
        builder = builder.pref_source(source).map_err(|_| invalid("source", &asked.source))?;
    }
    let message = builder.get_mut();
    if message.header.address_family == AddressFamily::Unspec {
        message.header.address_family = match asked.family.enum_value() {
            Ok(types::IPFamily::v6) => AddressFamily::Inet6,
            _ => AddressFamily::Inet,
        };
    }
    if asked.flags & ONLINK != 0 {
        builder = builder.onlink();
    }
    let mut message = builder.build();
    if asked.mtu != 0 {
        message.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(asked.mtu)]));
    }
    Ok(message)
}

/// `RTNH_F_ONLINK`.
const ONLINK: u32 = 4;

fn format_route(route: &RouteMessage, device: String) -> types::Route {
    let text = |address: &RouteAddress| match address {
        RouteAddress::Inet(address) => address.to_string(),
        RouteAddress::Inet6(address) => address.to_string(),
        _ => String::new(),
    };
    let mut out = types::Route { device, scope: u8::from(route.header.scope).into(), ..Default::default() };
    if route.header.address_family == AddressFamily::Inet6 {
        out.family = types::IPFamily::v6.into();
    }
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(address) => {
                out.dest = format!("{}/{}", text(address), route.header.destination_prefix_length);
            }
            RouteAttribute::Gateway(address) => out.gateway = text(address),
            RouteAttribute::PrefSource(address) => out.source = text(address),
            _ => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_addresses_are_six_bytes_and_not_loopbacks() {
        assert_eq!(parse_hardware("02:00:5e:00:00:0a").unwrap(), [2, 0, 0x5e, 0, 0, 10]);
        for text in ["", "00:00:00:00:00:00", "02:00:5e:00:00", "02:00:5e:00:00:0a:01", "2:0:5e:0:0:a", "+2:00:5e:00:00:0a"] {
            assert!(parse_hardware(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn refuses_addresses_of_the_guests_own() {
        let loopback = types::IPAddress { address: "127.0.0.1".to_owned(), mask: "8".to_owned(), ..Default::default() };
        assert!(matches!(parse_address(&loopback), Err(NetworkError::Loopback)));
        for (dest, gateway) in [("127.0.0.0/8", ""), ("", "127.0.0.1"), ("::1/128", "")] {
            let route = types::Route { dest: dest.to_owned(), gateway: gateway.to_owned(), ..Default::default() };
            assert!(matches!(parse_route(&route, 2), Err(NetworkError::Loopback)), "{dest} {gateway}");
        }
    }

    #[test]
    fn refuses_prefixes_longer_than_the_address() {
        for (address, mask) in [("10.0.0.1", "33"), ("fd00::1", "129"), ("10.0.0.1", ""), ("10.0.0.1", "-1")] {
            let asked = types::IPAddress { address: address.to_owned(), mask: mask.to_owned(), ..Default::default() };
            assert!(parse_address(&asked).is_err(), "{address}/{mask}");
        }
    }

    #[test]
    fn a_default_route_has_no_destination_and_the_family_of_its_gateway() {
        let asked = types::Route { gateway: "10.88.0.1".to_owned(), mtu: 1400, ..Default::default() };
        let route = parse_route(&asked, 2).unwrap();
        assert_eq!(route.header.address_family, AddressFamily::Inet);
        assert_eq!(route.header.destination_prefix_length, 0);
        assert!(has_gateway(&route) && output_of(&route) == Some(2));
        let back = format_route(&route, "eth0".to_owned());
        assert_eq!((back.gateway.as_str(), back.dest.as_str()), ("10.88.0.1", ""));
    }

    #[test]
    fn refuses_routes_whose_parts_are_of_two_families() {
        let asked = types::Route { dest: "10.0.0.0/8".to_owned(), gateway: "fd00::1".to_owned(), ..Default::default() };
        assert!(parse_route(&asked, 2).is_err());
    }
}
