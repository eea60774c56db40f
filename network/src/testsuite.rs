//! What every [`Driver`] must do. Each case panics where the driver fails it.

use crate::driver::Driver;
use crate::sandbox::Sandbox;

/// Runs all cases on a sandbox that the driver is meant for.
///
/// # Panics
///
/// Where the driver does not keep its promise.
pub fn run(driver: &dyn Driver, sandbox: &Sandbox) {
    attached_interfaces_are_there_and_up(driver, sandbox);
    attach_and_detach_can_be_repeated(driver, sandbox);
}

fn attached_interfaces_are_there_and_up(driver: &dyn Driver, sandbox: &Sandbox) {
    let endpoint = driver.attach(sandbox).expect("attached");
    let there = sandbox.netlink().expect("a socket").interfaces().expect("a list");
    for interface in &endpoint.interfaces {
        let real = there.iter().find(|real| real.index == interface.index).expect("the interface is in the sandbox");
        assert_eq!(real, interface);
        assert!(real.up);
    }
    driver.detach(sandbox).expect("detached");
}

fn attach_and_detach_can_be_repeated(driver: &dyn Driver, sandbox: &Sandbox) {
    let first = driver.attach(sandbox).expect("attached");
    assert_eq!(driver.attach(sandbox).expect("attached again"), first);
    driver.detach(sandbox).expect("detached");
    driver.detach(sandbox).expect("detached again");
}
