//! The simulated TEE: what the hardware of an SNP or TDX machine would say about a VM that has none.
//!
//! A development tool, in a crate of its own so that nothing of it can be linked into the agent or the broker: the production code
//! does not know that it exists. The parts that share this library:
//!
//! * [`identity`] makes a simulated AMD key hierarchy (root, intermediate, chip key) under names that cannot be mistaken for AMD's, and
//!   [`intel`] a simulated Intel one, with the collateral for it;
//! * [`serve`] runs on the host, one per VM: it reads the bytes the VM was launched with, measures them ([`report`]: into the launch digest the
//!   hardware would have computed; [`td`]: into registers of a TD, in a way of its own), and signs reports or quotes over that;
//! * [`guest`] runs as `/init` of the *simulation* initrd: it serves the kernel's configfs-tsm report interface by FUSE and then
//!   becomes the agent.
//!
//! **Invariant:** measurements, host data and MRCONFIGID of a report or quote come from the server's own command line, never from the guest.
//! **Invariant:** a report made here verifies only under a root that somebody configured by name; AMD's and Intel's refuse it.

pub mod cert;
pub mod guest;
pub mod identity;
pub mod intel;
pub mod report;
pub mod serve;
pub mod td;
pub mod wire;
