//! What is refused of a cluster before a process does anything.

use tempfile::TempDir;

use crate::support::binary::openwit;
use crate::{FAULT, USAGE};

#[test]
fn a_cluster_that_cannot_be_is_refused_with_the_line_that_is_wrong() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let config = format!(
        "node: {{data_directory: {}}}\ningestion: {{kafka: {{brokers: \"127.0.0.1:1\", topics: [v6.qtw.logs.*.*], \
         topic_index_config: {{default_index_position: 3}}, telemetry_type: logs}}}}\n",
        path("data")
    );
    std::fs::write(path("c.yaml"), config).unwrap();
    let refused = |more: &[&str]| {
        let own = path("c.yaml");
        let words = ["run", "--config", &own, "--set", "service_ports.arrow_flight=0"];
        openwit(words.iter().chain(more)).expect(USAGE).stderr
    };
    let hosts = path("hosts");
    let of_two = ["--processes", "2", "--process", "0", "--hostfile", &hosts];
    for (text, problem) in [
        ("10.0.0.1:2101\n\nnode-1\n", "hosts:3: \"node-1\" is not host:port"),
        ("0.0.0.0:2101\n10.0.0.1:2101\n", "hosts:1: \"0.0.0.0:2101\" is every interface of a machine"),
        ("10.0.0.1:2101\n", "hosts: has 1 addresses, and --processes is 2"),
    ] {
        std::fs::write(&hosts, text).unwrap();
        let said = refused(&of_two);
        assert!(said.contains("--hostfile: ") && said.contains(problem), "{said}");
    }
    std::fs::remove_file(&hosts).unwrap();
    assert!(refused(&of_two).contains("--hostfile: reading "));
    assert!(refused(&["--processes", "2", "--process", "2"]).contains("of 2 the last one is 1"));
    let storage = ["--processes", "2", "--process", "0", "--set", "graph=storage"];
    assert!(refused(&storage).contains("a cluster is of graphs with a source"));

    // The address of nobody on this machine.
    std::fs::write(&hosts, "192.0.2.1:2101\n192.0.2.2:2101\n").unwrap();
    let own = path("c.yaml");
    let words = ["run", "--config", &own, "--set", "service_ports.arrow_flight=0"];
    let said = openwit(words.iter().chain(&of_two)).expect(FAULT).stderr;
    assert!(said.contains("cluster: binding 192.0.2.1:2101, which is this process's address in the cluster"), "{said}");
}
