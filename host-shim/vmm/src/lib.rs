//! From a pod's request to a running virtual machine.
//!
//! Planning is pure: [`plan::plan`] turns a [`config::Config`] and a [`request::PodRequest`] into a [`plan::LaunchPlan`], a plain value that says
//! everything about the machine; [`qemu::command`] turns the plan into a command line, purely too. Only [`run`] starts processes.
//!
//! Nothing here is trusted by the guest. What this crate gets wrong shows in the launch measurement, and the pod does not get its keys.
//!
//! **Invariant:** nothing is started before the whole plan exists.
//! **Invariant:** a confidential class yields a command line with its protection object, or an error; never an ordinary machine.

pub mod config;
pub mod cpu_model;
pub mod cpus;
pub mod plan;
pub mod qemu;
pub mod qmp;
pub mod request;
pub mod run;
pub mod run_dir;
pub mod tee;
