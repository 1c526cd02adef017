//! The network interfaces of containers: the taps that come with them, and the machine's devices.

use std::os::fd::OwnedFd;

use nix::sys::socket::SockType;
use protocol::{
    ContainerId, Interface, NAMES_DATAGRAM_PORT, NAMES_MAX, NAMES_STREAM_PORT, Network,
};

use super::life::Life;
use super::names;
use crate::control::{ControlReply, NetworkChange};
use crate::error::one_line;

impl Life {
    /// Gets a container the network that it starts with.
    pub(super) fn attach(
        &mut self,
        id: ContainerId,
        mut network: Network,
        taps: Vec<OwnedFd>,
    ) -> Result<Network, ControlReply> {
        self.attach_all(id, &mut network.interfaces, taps)?;
        self.offer_names(&network);
        Ok(network)
    }

    /// Lets the guest ask the name server, if it is to have one.
    fn offer_names(&mut self, network: &Network) {
        if network.names {
            let vsock = self.parts.machine.vsock();
            for (port, kind) in [
                (NAMES_DATAGRAM_PORT, SockType::Datagram),
                (NAMES_STREAM_PORT, SockType::Stream),
            ] {
                vsock.accept(port, NAMES_MAX, move || names::connected(kind));
            }
        }
    }

    /// Does to a container's network what has been done to the host's. What the guest is to do about it is the result;
    /// what is gone is gone whether it does or not.
    pub(super) fn change_network(
        &mut self,
        id: ContainerId,
        change: NetworkChange,
        taps: Vec<OwnedFd>,
    ) -> Result<protocol::NetworkChange, ControlReply> {
        let NetworkChange {
            gone,
            undone,
            mut new,
            notes,
        } = change;
        for note in notes {
            self.parts.log.write(&note);
        }
        let gone = self.detach_all(id, &gone);
        self.attach_all(id, &mut new.interfaces, taps)?;
        self.offer_names(&new);
        Ok(protocol::NetworkChange { gone, undone, new })
    }

    /// Gives each interface a device: all of them, or none.
    fn attach_all(
        &mut self,
        id: ContainerId,
        interfaces: &mut [Interface],
        taps: Vec<OwnedFd>,
    ) -> Result<(), ControlReply> {
        if taps.len() != interfaces.len() {
            let text = "the network interfaces and their taps do not fit together";
            return Err(ControlReply::Failed(text.into()));
        }
        let Some(container) = self.containers.get_mut(&id) else {
            return Err(ControlReply::NotRunning);
        };
        let mut devices = Vec::new();
        for (interface, tap) in interfaces.iter_mut().zip(taps) {
            match self.parts.machine.attach_net(interface.mac, tap) {
                Ok(device) => devices.push((interface.index, device)),
                Err(e) => {
                    for (_, device) in devices {
                        self.parts.machine.detach_net(device);
                    }
                    let text = format!("network interface {}: {}", interface.name, one_line(&e));
                    return Err(ControlReply::Failed(text));
                }
            }
        }
        for (interface, (_, device)) in interfaces.iter_mut().zip(&devices) {
            interface.device = *device;
        }
        container.interfaces.extend(devices);
        Ok(())
    }

    /// Takes the taps of interfaces away, by their indices; the devices that had them.
    fn detach_all(&mut self, id: ContainerId, indices: &[i32]) -> Vec<u8> {
        let container = self.containers.get_mut(&id);
        let its = container.map(|container| &mut container.interfaces);
        let devices: Vec<u8> = its.map_or_else(Vec::new, |its| {
            let removed = indices.iter().filter_map(|index| its.remove(index));
            removed.collect()
        });
        for device in &devices {
            self.parts.machine.detach_net(*device);
        }
        devices
    }
}
