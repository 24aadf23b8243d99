//! A Service whose packets meet more kinds of rows than others.

/// A Service with affinity, whose load balancer's addresses are for the client outside alone.
const GUARDED: &str = "
---
apiVersion: v1
kind: Service
metadata: {name: guarded, namespace: default}
spec:
  type: LoadBalancer
  clusterIPs: [10.96.0.14, 'fd00:10:96::14']
  clusterIP: 10.96.0.14
  ipFamilies: [IPv4, IPv6]
  sessionAffinity: ClientIP
  loadBalancerSourceRanges: [203.0.113.0/24, '2001:db8:113::/64']
  ports: [{name: tcp, port: 80, nodePort: 30085}, {name: udp, protocol: UDP, port: 80, nodePort: 30085}]
status: {loadBalancer: {ingress: [{ip: 198.51.100.9}, {ip: '2001:db8:7::9'}]}}
";
pub const GUARDED_VIPS: [&str; 2] = ["10.96.0.14", "fd00:10:96::14"];
pub const GUARDED_IPS: [&str; 2] = ["198.51.100.9", "2001:db8:7::9"];

/// Its objects, with more lines in its `metadata`.
pub fn guarded(more: &str) -> String {
    let slice = |(family, prefix): (&str, &str)| {
        let endpoints: String =
            (1..=2).map(|number| format!("{{addresses: ['{prefix}{number}'], nodeName: worker-1}}, ")).collect();
        format!(
            "\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: guarded-{}, namespace: default, labels: {{kubernetes.io/service-name: guarded}}}}\n\
             addressType: {family}\nports: [{{name: tcp, port: 8080}}, {{name: udp, protocol: UDP, port: 8080}}]\nendpoints: [{endpoints}]\n",
            family.to_lowercase()
        )
    };
    GUARDED.replace("namespace: default}", &format!("namespace: default{more}}}"))
        + &[("IPv4", "10.244.1."), ("IPv6", "fd00:10:244:1::")].map(slice).concat()
}
