//! The simulated TEE: what an SNP machine's security processor would say about a VM that has none.
//!
//! A development tool, in a crate of its own so that nothing of it can be linked into the agent or the broker: the production code
//! does not know that it exists. Three parts share this library:
//!
//! * [`identity`] makes a simulated AMD key hierarchy (root, intermediate, chip key) under names that cannot be mistaken for AMD's;
//! * [`serve`] runs on the host, one per VM: it reads the bytes the VM was launched with, computes the launch digest the hardware
//!   would have computed, and signs reports over it;
//! * [`guest`] runs as `/init` of the *simulation* initrd: it serves the kernel's configfs-tsm report interface by FUSE and then
//!   becomes the agent.
//!
//! **Invariant:** the launch digest and the host data of a report come from the server's own command line, never from the guest.
//! **Invariant:** a report made here verifies only under a root that somebody configured by name; AMD's roots refuse it.

pub mod cert;
pub mod guest;
pub mod identity;
pub mod report;
pub mod serve;
pub mod wire;
