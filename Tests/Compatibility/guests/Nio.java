import java.io.IOException;
import java.net.InetSocketAddress;
import java.net.StandardSocketOptions;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.channels.SelectionKey;
import java.nio.channels.Selector;
import java.nio.channels.ServerSocketChannel;
import java.nio.channels.SocketChannel;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.util.Random;

/**
 * A selector server and clients. Frames are a length and that many bytes, which come back; length 0 asks for the file, which is
 * sent with transferTo.
 *
 *     java Nio.java server PORT FILE
 *     java Nio.java client PORT
 */
public final class Nio {
    static final int LARGEST = 1 << 20;

    /** What one connection of the server is about. */
    static final class Conversation {
        final ByteBuffer in = ByteBuffer.allocateDirect(LARGEST + 4);
        long filePosition = -1;
        boolean echoing;
    }

    public static void main(String[] arguments) throws Exception {
        int port = Integer.parseInt(arguments[1]);
        if (arguments[0].equals("server")) {
            serve(port, Path.of(arguments[2]));
        } else {
            Thread[] threads = new Thread[3];
            String[] said = new String[threads.length];
            for (int number = 0; number < threads.length; number++) {
                int mine = number;
                threads[number] = new Thread(() -> {
                    try {
                        said[mine] = converse(port, mine);
                    } catch (Exception problem) {
                        said[mine] = problem.toString();
                    }
                });
                threads[number].start();
            }
            for (Thread thread : threads) thread.join();
            System.out.println(String.join(" ", said));
        }
    }

    static void serve(int port, Path path) throws IOException {
        Selector selector = Selector.open();
        ServerSocketChannel listener = ServerSocketChannel.open();
        listener.bind(new InetSocketAddress("127.0.0.1", port));
        listener.configureBlocking(false);
        listener.register(selector, SelectionKey.OP_ACCEPT);
        FileChannel file = FileChannel.open(path);
        while (true) {
            selector.select();
            for (var keys = selector.selectedKeys().iterator(); keys.hasNext();) {
                SelectionKey key = keys.next();
                keys.remove();
                if (key.isAcceptable()) {
                    SocketChannel accepted = listener.accept();
                    if (accepted == null) continue;
                    accepted.configureBlocking(false);
                    accepted.setOption(StandardSocketOptions.TCP_NODELAY, true);
                    accepted.register(selector, SelectionKey.OP_READ, new Conversation());
                } else {
                    step(key, file);
                }
            }
        }
    }

    /** Reads, or goes on with the answer; one of the two at a time. */
    static void step(SelectionKey key, FileChannel file) throws IOException {
        SocketChannel channel = (SocketChannel) key.channel();
        Conversation conversation = (Conversation) key.attachment();
        ByteBuffer in = conversation.in;
        if (key.isReadable()) {
            int wanted = in.position() < 4 ? 4 : 4 + in.getInt(0);
            in.limit(wanted);
            if (channel.read(in) < 0) {
                channel.close();
                return;
            }
            if (in.position() < 4) return;
            int length = in.getInt(0);
            if (in.position() < 4 + length) return;
            in.flip();
            conversation.echoing = length > 0;
            conversation.filePosition = length > 0 ? -1 : 0;
            key.interestOps(SelectionKey.OP_WRITE);
            return;
        }
        if (conversation.echoing) {
            channel.write(in);
            if (in.hasRemaining()) return;
        } else {
            conversation.filePosition += file.transferTo(conversation.filePosition, file.size() - conversation.filePosition, channel);
            if (conversation.filePosition < file.size()) return;
        }
        in.clear();
        key.interestOps(SelectionKey.OP_READ);
    }

    static String converse(int port, int number) throws Exception {
        MessageDigest digest = MessageDigest.getInstance("SHA-256");
        Random random = new Random(number);
        try (SocketChannel channel = SocketChannel.open(new InetSocketAddress("127.0.0.1", port))) {
            for (int round = 0; round < 150; round++) {
                byte[] bytes = new byte[1 + random.nextInt(round % 10 == 9 ? LARGEST : 4000)];
                random.nextBytes(bytes);
                ByteBuffer[] frame = {ByteBuffer.allocate(4).putInt(0, bytes.length), ByteBuffer.wrap(bytes)};
                while (frame[1].hasRemaining()) channel.write(frame);
                byte[] back = read(channel, 4 + bytes.length);
                if (ByteBuffer.wrap(back, 4, bytes.length).compareTo(ByteBuffer.wrap(bytes)) != 0) return "other bytes";
                digest.update(back);
            }
            channel.write(ByteBuffer.allocate(4));
            digest.update(read(channel, 16 << 20));
        }
        return String.format("%064x", new java.math.BigInteger(1, digest.digest()));
    }

    static byte[] read(SocketChannel channel, int count) throws IOException {
        ByteBuffer buffer = ByteBuffer.allocate(count);
        while (buffer.hasRemaining()) {
            if (channel.read(buffer) < 0) throw new IOException("end of stream");
        }
        return buffer.array();
    }
}
