//! A process of the tests that makes sockets in the cgroup that it was put into.

fn main() -> std::io::Result<()> {
    kubeferry_tests::bpf::sockets::serve()
}
