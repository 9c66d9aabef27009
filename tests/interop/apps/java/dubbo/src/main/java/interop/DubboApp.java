package interop;

import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentHashMap;
import org.apache.dubbo.common.logger.Level;
import org.apache.dubbo.common.logger.LoggerFactory;
import org.apache.dubbo.config.ApplicationConfig;
import org.apache.dubbo.config.ProtocolConfig;
import org.apache.dubbo.config.ReferenceConfig;
import org.apache.dubbo.config.RegistryConfig;
import org.apache.dubbo.config.ServiceConfig;
import org.apache.dubbo.config.bootstrap.DubboBootstrap;
import org.apache.dubbo.rpc.RpcContext;
import org.apache.dubbo.rpc.RpcException;

/** Dubbo over its own protocol, without a registry: a consumer calls the address that it is told. */
public final class DubboApp implements App.Sdk {
    private static final int PAYLOAD = 64 << 20;

    private DubboApp() {}

    public static void main(String[] arguments) throws Exception {
        LoggerFactory.setLevel(Level.ERROR); // it has a line for each call that fails
        App.main(new DubboApp(), arguments[0]);
    }

    @Override
    public void provide(App.Options options, EchoService service) {
        ProtocolConfig protocol = new ProtocolConfig("dubbo", options.port());
        protocol.setThreads(options.threads());
        protocol.setQueues(options.queue());
        protocol.setPayload(PAYLOAD);
        DubboBootstrap bootstrap = bootstrap("interop-provider").protocol(protocol);
        for (Variant variant : Variant.PROVIDED) {
            ServiceConfig<Echo> config = new ServiceConfig<>();
            config.setInterface(Echo.class);
            config.setRef(service);
            config.setGroup(variant.group());
            config.setVersion(variant.version());
            bootstrap.service(config);
        }
        bootstrap.start();
    }

    /** A group and a version under which the service is provided; null without. */
    private record Variant(String group, String version) {
        static final Variant[] PROVIDED = {
            new Variant(null, null), new Variant("named", null), new Variant(null, "2.0.0"), new Variant("named", "2.0.0"),
        };
    }

    @Override
    public Calls consume(App.Options options) {
        bootstrap("interop-consumer").start();
        return new DubboCalls(options);
    }

    @Override
    public void close() {
        DubboBootstrap.getInstance().stop();
    }

    private static DubboBootstrap bootstrap(String name) {
        ApplicationConfig application = new ApplicationConfig(name);
        application.setQosEnable(false);
        application.setShutwait("1000");
        return DubboBootstrap.getInstance().application(application).registry(new RegistryConfig("N/A"));
    }

    private record DubboCalls(App.Options options, Map<Target, Echo> proxies) implements Calls {
        DubboCalls(App.Options options) {
            this(options, new ConcurrentHashMap<>());
        }

        @Override
        public String call(Target target, String method, String text) {
            return invoke(proxy(target), method, text);
        }

        @Override
        public CompletableFuture<String> callAsync(Target target, String method, String text) {
            Echo proxy = proxy(target);
            return RpcContext.getServiceContext().asyncCall(() -> invoke(proxy, method, text));
        }

        @Override
        public String name(Throwable error) {
            String name = error.getClass().getSimpleName();
            return error instanceof RpcException e ? name + "(" + e.getCode() + ")" : name;
        }

        private static String invoke(Echo proxy, String method, String text) {
            return switch (method) {
                case "echo" -> proxy.echo(text);
                case "hold" -> proxy.hold(text);
                default -> proxy.fail(text);
            };
        }

        private Echo proxy(Target target) {
            return proxies.computeIfAbsent(target, this::refer);
        }

        private Echo refer(Target target) {
            ReferenceConfig<Echo> reference = new ReferenceConfig<>();
            reference.setInterface(Echo.class);
            String serialization = target.serialization() == null ? "" : "&serialization=" + target.serialization();
            // How long it may take to connect again; a minute by default.
            String reconnect = "&heartbeat=3000&dubbo.application.least-reconnect-duration=1000";
            String parameters = "?payload=" + PAYLOAD + reconnect + serialization;
            reference.setUrl("dubbo://" + options.address() + parameters);
            reference.setGroup(target.name());
            reference.setVersion(target.version());
            reference.setTimeout(target.timeout());
            reference.setRetries(0);
            reference.setCheck(false);
            return reference.get();
        }
    }
}
