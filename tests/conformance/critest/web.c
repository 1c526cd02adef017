/*
 * What critest takes for nginx and for httpd: one page for whoever asks. The argument is the port, or it is 80.
 */
#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char page[] = "<title>Welcome to nginx!</title>\n";

static void end(int signal)
{
	(void)signal;
	_exit(0);
}

static void answer(int connection)
{
	char buffer[4096];

	if (read(connection, buffer, sizeof(buffer)) > 0)
		dprintf(connection,
			"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\nContent-Length: %zu\r\n\r\n%s",
			strlen(page), page);
	shutdown(connection, SHUT_WR);
	while (read(connection, buffer, sizeof(buffer)) > 0)
		;
	close(connection);
}

/* What nginx calls itself */
static char name[] = "nginx: master process nginx";

int main(int argc, char **argv)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(argc > 1 ? atoi(argv[1]) : 80) };
	int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
	FILE *file;

	if (strcmp(argv[0], name)) {
		argv[0] = name;
		execv("/proc/self/exe", argv);
	}
	signal(SIGTERM, end);
	signal(SIGINT, end);
	signal(SIGPIPE, SIG_IGN);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(listener, (void *)&address, sizeof(address)) || listen(listener, 64)) {
		perror("bind");
		return 1;
	}
	file = fopen("/var/run/nginx.pid", "w");
	if (file) {
		fprintf(file, "%d\n", getpid());
		fclose(file);
	}
	/* A test waits for this word in the log. */
	printf("httpd serves at port %d\n", ntohs(address.sin_port));
	fflush(stdout);
	for (;;) {
		int connection = accept(listener, NULL, NULL);

		if (connection >= 0)
			answer(connection);
	}
}
