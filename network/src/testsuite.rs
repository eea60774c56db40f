//! What every [`Driver`] must do. Each case panics where the driver fails it.

use crate::driver::Driver;
use crate::endpoint::Attachment;
use crate::network::Network;
use crate::sandbox::Sandbox;

/// Runs all cases on a sandbox that the driver is meant for.
///
/// # Panics
///
/// Where the driver does not keep its promise.
pub fn run(driver: &dyn Driver, network: &Network, sandbox: &Sandbox) {
    attached_interfaces_are_there_and_up(driver, network, sandbox);
    attach_and_detach_can_be_repeated(driver, network, sandbox);
}

fn attached_interfaces_are_there_and_up(driver: &dyn Driver, network: &Network, sandbox: &Sandbox) {
    let endpoint = driver.attach(network, sandbox, &attachment()).expect("attached");
    let there = sandbox.netlink().expect("a socket").interfaces().expect("a list");
    for interface in &endpoint.interfaces {
        let real = there.iter().find(|real| real.index == interface.index).expect("the interface is in the sandbox");
        assert_eq!(real, interface);
        assert!(real.up);
    }
    driver.detach(network, Some(sandbox), &attachment()).expect("detached");
}

fn attach_and_detach_can_be_repeated(driver: &dyn Driver, network: &Network, sandbox: &Sandbox) {
    let first = driver.attach(network, sandbox, &attachment()).expect("attached");
    assert_eq!(driver.attach(network, sandbox, &attachment()).expect("attached again"), first);
    driver.detach(network, Some(sandbox), &attachment()).expect("detached");
    driver.detach(network, Some(sandbox), &attachment()).expect("detached again");
}

fn attachment() -> Attachment {
    Attachment { container: "conformance".to_owned(), ..Attachment::default() }
}
